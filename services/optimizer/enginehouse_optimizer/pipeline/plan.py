"""A plan: a graph of stages with their cache keys, and the engines that it makes. `planner` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse_optimizer.pipeline.inputs import Target


@dataclass(frozen=True)
class Upload:
    """An input that is a directory with one uploaded file."""

    digest: str
    file_name: str


@dataclass(frozen=True)
class Output:
    """An input that is another stage's output."""

    stage: str


Source = Upload | Output


@dataclass(frozen=True)
class PlannedStage:
    """A stage to run: `name` is unique in its plan, `stage` is what the worker calls it.

    `timing_cache` names the cache that a build takes and gives back, empty for none. It is no part of the key: it
    changes how long a build takes, not what is asked for. `gpu` is the product that it runs on in a cluster, empty for
    none.
    """

    name: str
    stage: str
    environment: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Source]
    key: str
    timing_cache: str = ""
    gpu: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages whose outputs it takes."""
        return tuple(source.stage for source in self.inputs.values() if isinstance(source, Output))


@dataclass(frozen=True)
class PlannedEngine:
    """An engine to publish from the outputs of stages; `id` is the last part of its name.

    `blame` measures which layers cost a quantized engine its accuracy; it runs only when verification refuses it.
    """

    target: Target
    build: str
    verify: str
    calibrate: str | None
    sensitivity: str | None
    layers: str | None
    key: str
    id: str
    blame: PlannedStage | None = None


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which each comes after those it needs; engines in the order of the request's targets."""

    stages: tuple[PlannedStage, ...]
    engines: tuple[PlannedEngine, ...]

    def stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def lineage(self, name: str) -> tuple[PlannedStage, ...]:
        """A stage and all it needs, in the plan's order."""
        wanted = {name}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.needs)
        return tuple(stage for stage in self.stages if stage.name in wanted)

    def with_stage(self, stage: PlannedStage) -> Plan:
        """A stage that is not in the plan and all it needs, as a plan without engines."""
        needed = {name for need in stage.needs for name in (s.name for s in self.lineage(need))}
        return Plan((*(s for s in self.stages if s.name in needed), stage), ())
