"""Names the layers that cost a refused engine its accuracy, by measuring each of them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from enginehouse.artifacts import BlobStore
from enginehouse.errors import EnginehouseError, FailedPreconditionError
from enginehouse_optimizer.pipeline.executor import Obtain, Reporter, StageReporter, execute
from enginehouse_optimizer.pipeline.flights import read_json_file
from enginehouse_optimizer.pipeline.plan import Plan, PlannedStage
from enginehouse_optimizer.pipeline.slots import Urgency
from enginehouse_optimizer.threads import in_thread

# The engine's own verification among an error's details says that the gate refused it, and that nothing broke.
GATE_DETAIL = "accuracy_measured"
WORST_LAYERS = 5

_log = structlog.get_logger("stages")


def stage_to_blame(plan: Plan, error: EnginehouseError) -> PlannedStage | None:
    """The stage that finds the layers, when an error is the refusal of a quantized engine."""
    if not isinstance(error, FailedPreconditionError) or GATE_DETAIL not in error.details:
        return None
    return next((engine.blame for engine in plan.engines if engine.verify == error.details.get("stage")), None)


async def with_layers(
    error: EnginehouseError,
    stage: PlannedStage,
    plan: Plan,
    project: str,
    obtain: Obtain,
    reporter: Reporter,
    store: BlobStore,
) -> EnginehouseError:
    """The error, with the layers to blame; the error as it was when they cannot be found."""
    try:
        only = _Only(reporter, stage.name)
        results = await execute(project, plan.with_stage(stage), obtain, only)
        found = await in_thread(read_json_file, store, results[stage.name].tree, "sensitivity.json")
        layers = found["layers"][:WORST_LAYERS]
        said = ", ".join(f"{layer['name']} ({_effect(layer)})" for layer in layers)
    except (EnginehouseError, OSError, LookupError, TypeError, ValueError, AttributeError) as failure:
        _log.warning("the layers to blame were not found", stage=stage.name, error=str(failure))
        return error
    if not said:
        return error
    return FailedPreconditionError(
        f"{error.message}. Layers that cost most, each quantized alone: {said}",
        details={**error.details, "layers_to_blame": ",".join(str(layer["name"]) for layer in layers)},
    )


def _effect(layer: dict[str, Any]) -> str:
    sqnr = layer.get("sqnr_db")
    return "no effect" if sqnr is None else f"{sqnr:.1f} dB"


class _Only:
    """Reports one stage of a plan: the others were reported when they ran."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name

    def stage(self, name: str) -> StageReporter:
        reporter = self._reporter.stage(self._name)
        return reporter if name == self._name else _Silent(reporter.urgency)


class _Silent:
    """Tells nobody."""

    def __init__(self, urgency: Urgency) -> None:
        self.urgency = urgency

    def waiting(self, message: str) -> None: ...

    def reused(self, log_digest: str) -> None: ...

    def running(self, log: Path) -> None: ...

    def progress(self, fraction: float, message: str) -> None: ...

    def logged(self, log_digest: str) -> None: ...

    def measured(self, seconds: float | None, peak_memory_bytes: int | None) -> None: ...

    def succeeded(self) -> None: ...

    def failed(self, error: EnginehouseError) -> None: ...

    def cancelled(self) -> None: ...
