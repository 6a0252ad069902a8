"""Runs stages as Jobs: makes them, follows pods and logs, takes what they made, deletes them.

A Job is named after its stage's key. So a service that comes back finds the Job that it left running, or that ended
meanwhile, and takes it up; and two runs of one stage are one Job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import structlog

from enginehouse.artifacts import BlobStore, Tree
from enginehouse.errors import (
    AlreadyExistsError,
    EnginehouseError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from enginehouse.kubernetes.api import KubernetesApi, Object
from enginehouse.kubernetes.stage_files import Order
from enginehouse.workers.stage import RESULT
from enginehouse_optimizer.kubernetes.following import JobView
from enginehouse_optimizer.kubernetes.logs import StageLog, log_tail
from enginehouse_optimizer.kubernetes.patience import Patience
from enginehouse_optimizer.kubernetes.pod_logs import PodLogs
from enginehouse_optimizer.kubernetes.pod_template import WORKER
from enginehouse_optimizer.kubernetes.states import Ended, Failed, Running, State, Waiting
from enginehouse_optimizer.kubernetes.template import (
    INSTANCE,
    MANAGED_BY,
    MANAGER,
    ClusterSettings,
    JobOrder,
    job_name,
    make_job,
)
from enginehouse_optimizer.pipeline.places import RunWatcher, StageRun
from enginehouse_optimizer.pipeline.timing import INPUT, TimingCaches
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.threads import in_thread

# A pod that is taken away this often will be again.
MAX_DISRUPTIONS = 3
_LOG_END_LINES = 40
_LOG_END_BYTES = 4096
_GONE_SECONDS = 60.0
_TRIES = 5
# Limits of time are looked at so often, and the events of a Job without a pod every fifth time.
_LOOK_SECONDS = 0.5

_log = structlog.get_logger("kubernetes")


class KubernetesPlace:
    """A cluster. `start` it before its first run, `close` it after the last.

    Args:
        seconds: what a stage may take; None is no limit.
    """

    def __init__(
        self, settings: ClusterSettings, blobs: ProjectBlobs, timing: TimingCaches, seconds: float | None
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._timing = timing
        self._seconds = seconds
        self._api: KubernetesApi | None = None
        self._stopping = False

    def start(self, api: KubernetesApi, settings: ClusterSettings) -> None:
        """Use an API server, with settings that are complete."""
        self._api, self._settings = api, settings

    def leave(self) -> None:
        """From now on, Jobs of runs that are cancelled stay: the service stops, and comes back for them."""
        self._stopping = True

    async def sweep(self) -> int:
        """Delete all Jobs of this optimizer: nothing is left that wants them. Returns how many there were."""
        path = self._path()
        listed = await self._server.get(
            path, labelSelector=f"{MANAGED_BY}={MANAGER},{INSTANCE}={self._settings.instance}"
        )
        names = [str(job["metadata"]["name"]) for job in listed.get("items") or ()]
        for name in names:
            await self._delete(name)
        return len(names)

    async def run(self, run: StageRun, watcher: RunWatcher) -> tuple[Tree, dict[str, Any]]:
        store, stage = self._blobs.of(run.project), run.stage
        trees = dict(run.trees)
        if stage.timing_cache:
            trees[INPUT] = self._timing.tree(run.project, stage.timing_cache)
        order = Order(stage.stage, dict(stage.params), trees)
        digest = await in_thread(store.put_bytes, order.to_json().encode())
        job = make_job(
            self._settings,
            JobOrder(
                job_name(self._settings.instance, stage.stage, run.project, stage.key),
                stage.stage,
                stage.key,
                run.project,
                stage.environment,
                digest,
                stage.gpu,
                self._seconds,
            ),
        )
        name = str(job["metadata"]["name"])
        watcher.waits(f"the Job {name} is made{f' for a {stage.gpu}' if stage.gpu else ''}")
        try:
            await self._make(job)
            ended = await self._follow(name, run, watcher)
            tree, found = await in_thread(_take, store, ended.message)
        except asyncio.CancelledError:
            if not self._stopping:
                await self._delete(name)
            raise
        except BaseException:
            await self._delete(name)
            raise
        await self._delete(name)
        if stage.timing_cache:
            tree = self._timing.take(run.project, stage.timing_cache, tree, trees[INPUT])
        return tree, found

    @property
    def _server(self) -> KubernetesApi:
        if self._api is None:
            raise InternalError("stages came before the cluster was connected")
        return self._api

    def _path(self, name: str = "") -> str:
        base = f"/apis/batch/v1/namespaces/{self._settings.namespace}/jobs"
        return f"{base}/{name}" if name else base

    async def _make(self, job: Object) -> None:
        """Make the Job, or take up the one that is there; one that failed or is going makes way first."""
        name = str(job["metadata"]["name"])
        deadline = time.monotonic() + _GONE_SECONDS
        tries = 0
        while True:
            try:
                await self._server.post(self._path(), job)
                _log.info("job made", job=name)
                return
            except AlreadyExistsError:
                if await self._is_of_use(name):
                    _log.info("job taken up again", job=name)
                    return
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"an earlier Job {name} does not go away: look at its finalizers", details={"job": name}
                    ) from None
            except UnavailableError:
                # It may have been made all the same: then it is found.
                tries += 1
                if tries >= _TRIES:
                    raise
            await asyncio.sleep(0.2 * 2 ** min(tries, 4))

    async def _is_of_use(self, name: str) -> bool:
        try:
            job = await self._server.get(self._path(name))
        except NotFoundError:
            return False
        if "deletionTimestamp" in job["metadata"]:
            return False
        conditions = job.get("status", {}).get("conditions") or ()
        if any(c["type"] in ("Failed", "FailureTarget") and c["status"] == "True" for c in conditions):
            await self._delete(name)
            return False
        return True

    async def _delete(self, name: str) -> None:
        """Delete a Job and its pods; what goes wrong is logged, for the Job also ends by itself."""
        with contextlib.suppress(NotFoundError):
            try:
                await asyncio.shield(self._server.delete(self._path(name)))
            except EnginehouseError as error:
                if isinstance(error, NotFoundError):
                    raise
                _log.warning("a job could not be deleted", job=name, error=error.message)

    async def _follow(self, name: str, run: StageRun, watcher: RunWatcher) -> Ended:
        """Watch a Job to its end.

        Raises:
            EnginehouseError: it failed, or waited or ran for too long.
        """
        clock = Patience(self._settings, self._seconds, run.stage.stage)
        with StageLog(run.log, watcher.progresses) as log:
            async with JobView.of(self._server, self._settings.namespace, name) as view, PodLogs(view, log) as logs:
                told: State | None = None
                while True:
                    state = view.state()
                    if isinstance(state, (Ended, Failed)):
                        # The Job's watch may be ahead of its pods'.
                        await view.refresh()
                        state = view.state()
                    logs.follow_started()
                    if isinstance(state, Ended):
                        await logs.finish()
                        return state
                    if isinstance(state, Failed):
                        raise await self._failure(view, state, run, log, logs)
                    if view.disrupted >= MAX_DISRUPTIONS:
                        raise UnavailableError(
                            f"the pod of the Job {name} was taken away {view.disrupted} times: {_message(state)}",
                            details={"job": name},
                        )
                    if state != told:
                        told = state
                        _tell(state, watcher, log)
                    clock.check(state)
                    await view.changed(_LOOK_SECONDS)

    async def _failure(
        self, view: JobView, failed: Failed, run: StageRun, log: StageLog, logs: PodLogs
    ) -> EnginehouseError:
        """The error of a failure, with what the container that failed said."""
        await logs.finish()
        error = failed.error
        # What a stage said before it was killed for want of memory does not explain it.
        if failed.container == WORKER and log.error is not None and error.details.get("reason") != "OOMKilled":
            log.error.details.setdefault("stage", run.stage.stage)
            return log.error
        if not failed.container:
            return error
        if failed.container == WORKER:
            end = (await in_thread(run.log.read_bytes))[-_LOG_END_BYTES:].decode(errors="replace")
        else:
            path = view.log_path(failed.pod)
            tail = await log_tail(self._server, path, failed.container, _LOG_END_LINES)
            log.feed(tail)
            if log.error is not None:
                return log.error
            end = tail.decode(errors="replace")
        message = f"{error.message}. End of its log:\n{end.strip() or '(empty)'}"
        return type(error)(message, details=error.details)


def _tell(state: State, watcher: RunWatcher, log: StageLog) -> None:
    if isinstance(state, Running):
        watcher.runs()
    else:
        log.note(f"--- {_message(state)} ---")
        watcher.waits(_message(state))


def _message(state: State) -> str:
    return state.message if isinstance(state, Waiting) else type(state).__name__


def _take(store: BlobStore, message: str) -> tuple[Tree, dict[str, Any]]:
    """What a stage made, from the termination message of `publish`. Reads the disk: call it from a thread.

    Raises:
        InternalError: it is not what `publish` writes.
        NotFoundError, DataLossError: what it names is not stored, or damaged.
    """
    try:
        tree = Tree.from_json(json.loads(store.read_bytes(json.loads(message)["tree"])))
        entry = tree.find(RESULT)
        found = json.loads(store.read_bytes(entry.digest)) if entry is not None else None
    except (ValueError, LookupError, TypeError) as error:
        raise InternalError(
            f"the pod published {message[:200]!r}: expected the digest of what the stage made"
        ) from error
    if not isinstance(found, dict):
        raise InternalError(f"the pod published no {RESULT}")
    for file in tree.entries:
        store.path(file.digest)
    return tree, found
