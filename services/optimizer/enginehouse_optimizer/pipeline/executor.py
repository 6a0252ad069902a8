"""Runs a plan: every stage as soon as those it needs are done; the first failure stops the rest."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from typing import Protocol

import structlog

from enginehouse.artifacts import Tree
from enginehouse.artifacts.files import storage_error
from enginehouse.errors import EnginehouseError, InternalError
from enginehouse_optimizer.pipeline.flights import Listener
from enginehouse_optimizer.pipeline.plan import Output, Plan, PlannedStage
from enginehouse_optimizer.storage.stage_results import StageResult

_log = structlog.get_logger("stages")


class Obtain(Protocol):
    """`StageRunner.obtain`."""

    async def __call__(
        self, project: str, stage: PlannedStage, outputs: Mapping[str, Tree], listener: Listener
    ) -> StageResult: ...


class StageReporter(Listener, Protocol):
    """A listener that is also told the end as this job sees it."""

    def succeeded(self) -> None: ...

    def failed(self, error: EnginehouseError) -> None: ...

    def cancelled(self) -> None: ...


class Reporter(Protocol):
    """Makes the reporter of each stage of a job."""

    def stage(self, name: str) -> StageReporter: ...


async def execute(project: str, plan: Plan, obtain: Obtain, reporter: Reporter) -> dict[str, StageResult]:
    """Run all stages of a plan; returns their results by name.

    Raises:
        EnginehouseError: of the first stage that failed, with `stage` in its details; nothing runs any more.
    """
    tasks: dict[str, asyncio.Task[StageResult]] = {}
    for stage in plan.stages:  # in an order that has what a stage needs before it
        needed = {name: tasks[s.stage] for name, s in stage.inputs.items() if isinstance(s, Output)}
        tasks[stage.name] = asyncio.ensure_future(_stage(project, stage, needed, obtain, reporter.stage(stage.name)))
    waiting = set(tasks.values())
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            failures = [e for task in done if not task.cancelled() and (e := task.exception()) is not None]
            if failures:
                raise failures[0]
        return {name: task.result() for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _stage(
    project: str,
    stage: PlannedStage,
    needed: Mapping[str, asyncio.Task[StageResult]],
    obtain: Obtain,
    reporter: StageReporter,
) -> StageResult:
    try:
        if needed:
            await asyncio.wait(set(needed.values()))
        if any(task.cancelled() or task.exception() is not None for task in needed.values()):
            raise asyncio.CancelledError  # what it needs has failed: that failure is the job's
        outputs = {name: task.result().tree for name, task in needed.items()}
        result = await obtain(project, stage, outputs, reporter)
    except asyncio.CancelledError:
        reporter.cancelled()
        raise
    except Exception as error:
        failure = _failure(stage, error)
        reporter.failed(failure)
        raise failure from error
    reporter.succeeded()
    return result


def _failure(stage: PlannedStage, error: Exception) -> EnginehouseError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = storage_error(error, "preparing it")
    elif not isinstance(error, EnginehouseError):  # a bug of ours, or a disk that does not answer
        _log.exception("stage broke", stage=stage.name)
        error = InternalError(f"{type(error).__name__}: {error} (the server's log has more)")
    return type(error)(
        f"stage {stage.name!r} failed: {error.message}",
        details={**error.details, "stage": stage.name},
        retry_after_seconds=error.retry_after_seconds,
    )
