"""Where stages run. The local place is this machine: a subprocess in a worker environment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from enginehouse.artifacts import Tree, materialize, store_tree
from enginehouse.workers.environments import WorkerEnvironments
from enginehouse.workers.stage import StageLimits, StageSpec, run_stage
from enginehouse_optimizer.pipeline.plan import PlannedStage
from enginehouse_optimizer.pipeline.timing import INPUT, TimingCaches
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.threads import in_thread


class RunWatcher(Protocol):
    """Told, in the event loop, how a run goes."""

    def waits(self, message: str) -> None:
        """It cannot go on yet, for this reason."""

    def runs(self) -> None:
        """It runs now, and writes its log."""

    def progresses(self, fraction: float, message: str) -> None: ...

    def grouped(self, group: int) -> None:
        """Its process group on this machine."""


@dataclass(frozen=True)
class StageRun:
    """One run of a stage: `trees` are its inputs, `work` is a folder of its own, `log` a file in there."""

    project: str
    stage: PlannedStage
    trees: Mapping[str, Tree]
    work: Path
    log: Path


class StagePlace(Protocol):
    """Runs stages."""

    async def run(self, run: StageRun, watcher: RunWatcher) -> tuple[Tree, dict[str, Any]]:
        """Run a stage to its end; returns what it wrote, stored, and what its `result.json` holds.

        Raises:
            EnginehouseError: it failed; what it printed is in the log.
        """


class LocalPlace:
    """This machine."""

    def __init__(
        self, blobs: ProjectBlobs, environments: WorkerEnvironments, limits: StageLimits, timing: TimingCaches
    ) -> None:
        self._blobs = blobs
        self._environments = environments
        self._limits = limits
        self._timing = timing

    async def run(self, run: StageRun, watcher: RunWatcher) -> tuple[Tree, dict[str, Any]]:
        watcher.runs()
        stage, store = run.stage, self._blobs.of(run.project)
        inputs = {name: run.work / "inputs" / name for name in stage.inputs}
        for name, tree in run.trees.items():
            await in_thread(materialize, store, tree, inputs[name])
        given = ""
        if stage.timing_cache:
            inputs[INPUT] = run.work / "inputs" / INPUT
            given = await self._timing.give(run.project, stage.timing_cache, inputs[INPUT])
        spec = StageSpec(stage.stage, inputs, run.work / "output", stage.params)
        spec.output.mkdir()
        found = await run_stage(
            self._environments.environment(stage.environment),
            spec,
            log=run.log,
            progress=watcher.progresses,
            started=watcher.grouped,
            limits=self._limits,
        )
        if stage.timing_cache:
            await self._timing.take_back(run.project, stage.timing_cache, spec.output, given)
        return await in_thread(store_tree, store, spec.output, move=True), found


async def empty(folder: Path) -> None:
    """Remove a run's folder."""
    await in_thread(shutil.rmtree, folder, ignore_errors=True)
