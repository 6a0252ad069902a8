"""The logs of a Job's pods, together in one."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from enginehouse.errors import EnginehouseError
from enginehouse_optimizer.kubernetes.following import JobView
from enginehouse_optimizer.kubernetes.logs import StageLog, follow_log
from enginehouse_optimizer.kubernetes.pod_template import WORKER

_log = structlog.get_logger("kubernetes")


class PodLogs:
    """Follows the logs of a Job's pods, each once its worker has started."""

    def __init__(self, view: JobView, log: StageLog) -> None:
        self._view = view
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> PodLogs:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def follow_started(self) -> None:
        for pod in self._view.started():
            if pod not in self._tasks:
                if self._tasks:
                    self._log.note(f"--- the stage begins again in the pod {pod} ---")
                self._tasks[pod] = asyncio.ensure_future(
                    follow_log(
                        self._view.api,
                        self._view.log_path(pod),
                        WORKER,
                        partial(self._has_ended, pod),
                        self._log.feed,
                    )
                )

    def _has_ended(self, pod: str) -> bool:
        return self._view.started().get(pod, True)

    async def finish(self) -> None:
        """Wait for the rest of the logs."""
        self.follow_started()
        results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, EnginehouseError):
                _log.warning("a stage's log could not be read to its end", error=result.message)
