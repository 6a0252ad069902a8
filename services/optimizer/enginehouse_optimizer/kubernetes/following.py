"""One Job and its pods as they are now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from enginehouse.errors import EnginehouseError
from enginehouse.kubernetes.api import KubernetesApi, Object
from enginehouse.kubernetes.follow import follow
from enginehouse_optimizer.kubernetes.states import STARTING, State, Waiting, disruptions, observe, started

JOB_NAME = "batch.kubernetes.io/job-name"
# An API server may be upgraded while stages run.
_PATIENCE_SECONDS = 900.0
# After so many looks without a pod, the Job's events say why.
_PODLESS_LOOKS = 5


class JobView:
    """Kept up to date by two watches. Make it with `of`; pods of the Job stay known until the cluster forgets them."""

    def __init__(self, api: KubernetesApi, namespace: str, name: str) -> None:
        self.api = api
        self._namespace = namespace
        self._name = name
        self._job: Object | None = None
        self._pods: Mapping[str, Object] = {}
        self._disrupted: set[str] = set()
        self._started: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seen = {"job": False, "pods": False}
        self._podless = 0
        self._podless_why = ""

    @classmethod
    @asynccontextmanager
    async def of(cls, api: KubernetesApi, namespace: str, name: str) -> AsyncIterator[JobView]:
        """Raises EnginehouseError from `changed` when the API server refuses, or does not answer for long."""
        view = cls(api, namespace, name)
        view._tasks = [asyncio.ensure_future(view._watch_job()), asyncio.ensure_future(view._watch_pods())]
        try:
            while not all(view._seen.values()):
                await view.changed(1.0)
            yield view
        finally:
            for task in view._tasks:
                task.cancel()
            await asyncio.gather(*view._tasks, return_exceptions=True)

    @property
    def disrupted(self) -> int:
        """How many pods were taken away so far."""
        return len(self._disrupted)

    def state(self) -> State:
        state = observe(self._name, self._job, self._pods.values())
        if self._podless_why and not self._pods and isinstance(state, Waiting):
            return Waiting(STARTING, self._podless_why)
        return state

    def started(self) -> Mapping[str, bool]:
        """Pods whose worker has started, each with whether it has ended (a pod that is gone has)."""
        return {name: ended or name not in self._pods for name, ended in self._started.items()}

    def log_path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods/{pod}/log"

    async def changed(self, seconds: float) -> None:
        """Wait for a change, at most so long."""
        for task in self._tasks:
            if task.done():
                task.result()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()
        if all(self._seen.values()):
            await self._look_for_events()

    async def refresh(self) -> None:
        """Ask for the pods as they are at this moment."""
        query = {"labelSelector": f"{JOB_NAME}={self._name}"}
        listed = await self.api.get(f"/api/v1/namespaces/{self._namespace}/pods", **query)
        self._take_pods({str(pod["metadata"]["name"]): pod for pod in listed.get("items") or ()})

    async def _watch_job(self) -> None:
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs"
        query = {"fieldSelector": f"metadata.name={self._name}"}
        async for jobs in follow(self.api, path, patience_seconds=_PATIENCE_SECONDS, **query):
            self._job = jobs.get(self._name)
            self._seen["job"] = True
            self._changed.set()

    async def _watch_pods(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        query = {"labelSelector": f"{JOB_NAME}={self._name}"}
        async for pods in follow(self.api, path, patience_seconds=_PATIENCE_SECONDS, **query):
            self._take_pods(pods)
            self._seen["pods"] = True
            self._changed.set()

    def _take_pods(self, pods: Mapping[str, Object]) -> None:
        self._pods = pods
        self._disrupted |= disruptions(pods.values())
        self._started |= started(pods.values())

    async def _look_for_events(self) -> None:
        """A Job without a pod says nothing of why; its events do (a quota, an admission policy)."""
        if self._pods or self._job is None:
            self._podless, self._podless_why = 0, ""
            return
        self._podless += 1
        if self._podless % _PODLESS_LOOKS:
            return
        query = {"fieldSelector": f"involvedObject.kind=Job,involvedObject.name={self._name}"}
        with contextlib.suppress(EnginehouseError):
            listed = await self.api.get(f"/api/v1/namespaces/{self._namespace}/events", **query)
            warnings = [e for e in listed.get("items") or () if e.get("type") == "Warning"]
            if warnings:
                last = max(warnings, key=lambda e: int(e["metadata"].get("resourceVersion", 0)))
                self._podless_why = f"has no pod: {last.get('reason')}: {last.get('message')}"
