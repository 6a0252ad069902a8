"""Jobs: a bounded queue, the most urgent first, a few at a time, cancelled at once, taken up again after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog
from google.rpc import status_pb2

from enginehouse.errors import CancelledError, EnginehouseError, InternalError, ResourceExhaustedError
from enginehouse.rpc.status import to_proto
from enginehouse.v1 import engines_pb2
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.pipeline.blame import stage_to_blame, with_layers
from enginehouse_optimizer.pipeline.executor import execute
from enginehouse_optimizer.pipeline.flights import StageRunner
from enginehouse_optimizer.pipeline.gpus import Gpus, LocalGpus
from enginehouse_optimizer.pipeline.inputs import Inputs
from enginehouse_optimizer.pipeline.plan import Plan
from enginehouse_optimizer.pipeline.planner import environments_of, make_plan
from enginehouse_optimizer.pipeline.publish import engine_message, has_files, make_manifest
from enginehouse_optimizer.pipeline.reporter import JobReporter
from enginehouse_optimizer.pipeline.slots import Urgency
from enginehouse_optimizer.pipeline.versions import EnvironmentVersions
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.jobs import Job, Jobs
from enginehouse_optimizer.storage.stage_results import StageResult
from enginehouse_optimizer.threads import in_thread

_log = structlog.get_logger("jobs")

END_RETRY_SECONDS = 5.0


class JobManager:
    """Runs jobs. All methods in the service's event loop."""

    def __init__(
        self,
        jobs: Jobs,
        engines: EngineIndex,
        blobs: ProjectBlobs,
        runner: StageRunner,
        versions: EnvironmentVersions,
        gpus: Gpus | None = None,
        *,
        max_queued: int,
        max_running: int,
    ) -> None:
        self._jobs = jobs
        self._engines = engines
        self._blobs = blobs
        self._runner = runner
        self._versions = versions
        self._gpus = gpus or LocalGpus()
        self._max_queued = max_queued
        self._max_running = max_running
        self._queue: dict[int, Urgency] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._reporters: dict[int, JobReporter] = {}
        self._cancelling: set[int] = set()
        self._stopping = False

    def resume(self) -> int:
        """Take up the jobs that the last service left; returns how many. Once, before the first request."""
        live = self._jobs.live()
        for job in live:
            if job.cancel_requested:
                self._finish_cancelled(job.number)
            else:
                self._jobs.requeue(job.number)
                self._enqueue(job)
        self._dispatch()
        return len(live)

    async def submit(self, project: str, request: pb.OptimizeRequest, inputs: Inputs) -> Job:
        """Queue a job for a checked request; a request_id that came before returns its job.

        Raises:
            ResourceExhaustedError: the queue is full.
            FailedPreconditionError: a worker environment that it needs is not installed or does not work, or there is
                no GPU such as it names.
        """
        inputs = await self._gpus.place(inputs)
        plan = await self._plan(inputs)
        # No await from here on: two equal requests at the same time are one job, and the bound holds.
        if request.request_id and (job := self._jobs.by_request_id(project, request.request_id)) is not None:
            return job
        if len(self._queue) >= self._max_queued:
            raise ResourceExhaustedError(
                f"{len(self._queue)} optimizations wait already: try again later, or raise ENGINEHOUSE_MAX_QUEUED_JOBS",
                retry_after_seconds=10.0,
            )
        names = [stage.name for stage in plan.stages]
        job = self._jobs.create(project, uuid4().hex, request, inputs.to_json(), names)
        self._enqueue(job)
        _log.info("job queued", operation=job.name, model=job.model, stages=len(names), priority=job.priority)
        self._dispatch()
        return job

    def cancel(self, job: Job) -> None:
        """Stop a job: a queued one at once, a running one as soon as its stages are dead. A finished one stays."""
        if job.done:
            return
        self._jobs.request_cancel(job.number)
        if job.number in self._running:
            if job.number not in self._cancelling:
                self._cancelling.add(job.number)
                self._running[job.number].cancel()
        elif job.number in self._queue:
            self._finish_cancelled(job.number)
            del self._queue[job.number]

    async def close(self) -> None:
        """Kill what runs; the jobs stay live in storage, for `resume` to take up."""
        self._stopping = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stage_log(self, number: int, stage: str) -> Path | None:
        """The log file of a stage that runs now."""
        reporter = self._reporters.get(number)
        return None if reporter is None else reporter.log(stage)

    async def _plan(self, inputs: Inputs) -> Plan:
        versions = await self._versions.of(environments_of(inputs))
        return make_plan(inputs, {**versions, **await self._gpus.versions(inputs)})

    def _enqueue(self, job: Job) -> None:
        self._queue[job.number] = (-job.priority, job.number)

    def _dispatch(self) -> None:
        while self._queue and len(self._running) < self._max_running and not self._stopping:
            number = min(self._queue, key=self._queue.__getitem__)
            del self._queue[number]
            task = asyncio.ensure_future(self._run(number))
            self._running[number] = task
            task.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._running.pop(number, None)
        self._reporters.pop(number, None)
        if task.cancelled() and number in self._cancelling and not self._stopping:
            self._finish_cancelled(number)  # it never began, so that it could not say so itself
        self._cancelling.discard(number)
        self._dispatch()

    async def _run(self, number: int) -> None:
        job = self._jobs.by_number(number)
        log = _log.bind(operation=job.name)
        try:
            response = await self._optimize(job)
        except asyncio.CancelledError:
            if number not in self._cancelling:
                return  # the service stops: `resume` takes the job up
            end = partial(self._finish_cancelled, number)
            log.info("job cancelled")
        except EnginehouseError as error:
            end = partial(self._jobs.finish, number, pb.JOB_STATE_FAILED, response=None, error=to_proto(error))
            log.warning("job failed", status=error.reason, error=error.message)
        except Exception as error:
            log.exception("job failed")
            internal = InternalError(f"internal error: {type(error).__name__}: {error} (the server's log has more)")
            end = partial(self._jobs.finish, number, pb.JOB_STATE_FAILED, response=None, error=to_proto(internal))
        else:
            end = partial(self._jobs.finish, number, pb.JOB_STATE_SUCCEEDED, response=response, error=None)
            log.info("job succeeded", engines=[engine.name for engine in response.engines])
        self._cancelling.add(number)  # it is too late to cancel
        reporter = self._reporters.get(number)
        await _written(end if reporter is None else partial(_in_turn, reporter.flush, end))

    async def _optimize(self, job: Job) -> pb.OptimizeResponse:
        inputs = Inputs.from_json(job.inputs)
        # Planned anew: after a restart the environments may be others, and so the keys.
        plan = await self._plan(inputs)
        self._jobs.replan(job.number, [stage.name for stage in plan.stages])
        self._jobs.start(job.number)
        reporter = self._reporters[job.number] = JobReporter(self._jobs, job.number, job.priority)
        try:
            results = await execute(job.project, plan, self._runner.obtain, reporter)
        except EnginehouseError as error:
            raise await self._explained(job, plan, error, reporter) from error
        # Manifests of all first: one that cannot be made publishes none.
        engines = [await self._engine(job.project, inputs, plan, index, results) for index in range(len(plan.engines))]
        return pb.OptimizeResponse(engines=self._engines.publish(engines))

    async def _explained(
        self, job: Job, plan: Plan, error: EnginehouseError, reporter: JobReporter
    ) -> EnginehouseError:
        stage = stage_to_blame(plan, error)
        if stage is None:
            return error
        try:
            self._jobs.add_stage(job.number, stage.name)
        except ResourceExhaustedError as full:
            _log.warning("the layers to blame are not looked for", operation=job.name, error=full.message)
            return error
        store = self._blobs.of(job.project)
        return await with_layers(error, stage, plan, job.project, self._runner.obtain, reporter, store)

    async def _engine(
        self, project: str, inputs: Inputs, plan: Plan, index: int, results: Mapping[str, StageResult]
    ) -> engines_pb2.Engine:
        planned = plan.engines[index]
        store = self._blobs.of(project)
        manifest = await in_thread(make_manifest, store, inputs, plan, planned, results)
        name = f"projects/{project}/engines/{planned.id}"
        found = self._engines.find(project, planned.key, inputs.model.name)
        if found is not None:
            manifest = replace(manifest, create_time=found.create_time.ToJsonString())
            again = engine_message(name, manifest, found.manifest_digest)
            if again == found:
                return found  # nothing new to say of it
            if list(again.files) != list(found.files) and await in_thread(has_files, store, found):
                # Builds need not repeat to the byte. What is served, pinned or exported must not change under its name.
                _log.warning("an engine was built again with other bytes: the first ones stay", engine=name)
                return found
        digest = await in_thread(store.put_bytes, manifest.to_json().encode())
        return engine_message(name, manifest, digest)

    def _finish_cancelled(self, number: int) -> None:
        error: status_pb2.Status = to_proto(CancelledError("the operation was cancelled"))
        self._jobs.finish(number, pb.JOB_STATE_CANCELLED, response=None, error=error)


async def _written(end: Callable[[], None]) -> None:
    """Write a job's end; while a full disk refuses it, again and again: whoever watches the job waits for it."""
    while True:
        try:
            return end()
        except ResourceExhaustedError as error:
            _log.error("a job's end cannot be written yet", error=error.message)
            await asyncio.sleep(END_RETRY_SECONDS)


def _in_turn(*steps: Callable[[], None]) -> None:
    for step in steps:
        step()
