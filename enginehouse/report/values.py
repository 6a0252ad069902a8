"""The paper's absolute values beside ours. Pure.

Absolute values belong to the paper's hardware: they are shown beside a run, never compared as if on equal hardware.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.bench.plan import ALL_GPUS
from enginehouse.bench.rows import Row
from enginehouse.paper.facts import Paper, StatedValue
from enginehouse.report.claims import SCOPES, in_flight
from enginehouse.report.data import Results


@dataclass(frozen=True)
class Beside:
    """A value of the paper and the row of ours that belongs beside it; without one, why there is none."""

    value: StatedValue
    ours: Row | None
    why: str


def beside(paper: Paper, results: Results) -> tuple[Beside, ...]:
    """Every stated value with our row of the same mode and model.

    The row is the one at the value's batch; for `batch_below`, the largest batch below it; without a batch, at the one
    that the value implies (images in flight are throughput times latency), else the one with the highest throughput, or
    with the lowest latency where the paper states nothing but a latency. Of several GPUs the first counts, alone.
    """
    return tuple(_beside(value, results) for value in paper.values)


def _beside(value: StatedValue, results: Results) -> Beside:
    rows = [
        row
        for row in results.rows
        if (row.lane.mode, row.lane.model) == (value.mode, value.model) and row.lane.device != ALL_GPUS
    ]
    scoped = next((found for scope in SCOPES if (found := [row for row in rows if row.lane.scope == scope])), [])
    if not scoped:
        reason = next((entry.reason for entry in results.not_run if entry.lane.mode == value.mode), None)
        return Beside(value, None, reason or f"no row of {value.mode} on {value.model}")
    if value.batch is not None:
        row = next((row for row in scoped if row.lane.batch == value.batch), None)
        return Beside(value, row, "" if row else f"batch {value.batch} was not measured")
    if value.batch_below is not None:
        below = [row for row in scoped if row.lane.batch < value.batch_below]
        if not below:
            return Beside(value, None, f"no batch below {value.batch_below} was measured")
        return Beside(value, max(below, key=lambda row: row.lane.batch), "the largest batch measured below it")
    if value.images_per_second is None:
        return Beside(value, min(scoped, key=lambda row: row.latency_ms.mean), "our lowest latency")
    implied = in_flight(value)
    if implied is not None and (row := next((row for row in scoped if row.lane.batch == implied), None)):
        return Beside(value, row, "the batch size that the value implies")
    return Beside(value, max(scoped, key=lambda row: row.inferences_per_second), "our highest throughput")
