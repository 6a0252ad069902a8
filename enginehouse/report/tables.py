"""The report's tables: the three scopes beside each other, throughput within a latency budget, energy. Pure.

Numbers of different scopes stand in columns of their own and are never compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.plan import ALL_GPUS
from enginehouse.bench.rows import Accuracy, Row
from enginehouse.errors import InvalidArgumentError
from enginehouse.report.script_rows import MeasuredAccuracy

SCOPES = ("engine", "host", "served")
BUDGET_MS = 7.0
BUDGET_QUANTITIES = ("mean", "p50", "p90", "p95", "p99", "max")
Key = tuple[str, str, str]


@dataclass(frozen=True)
class ScopeLine:
    """A model in a mode on a device at a batch size: its row in each of `SCOPES`, the fastest of several; None
    without."""

    model: str
    mode: str
    device: str
    batch: int
    cells: tuple[Row | None, ...]


@dataclass(frozen=True)
class Fit:
    """In one scope: the row with the highest throughput whose latency fits (None: none does), and the lowest latency,
    ms."""

    row: Row | None
    lowest_latency_ms: float


@dataclass(frozen=True)
class BudgetLine:
    """A model in a mode on a device: what fits the budget in each of `SCOPES`; None where the scope has no rows."""

    model: str
    mode: str
    device: str
    cells: tuple[Fit | None, ...]


def scope_lines(rows: Sequence[Row]) -> tuple[ScopeLine, ...]:
    """A line for each model, mode, device and batch size, in the rows' order."""
    return tuple(
        ScopeLine(*key, batch=batch, cells=tuple(_fastest(found, scope) for scope in SCOPES))
        for key, members in _groups(rows).items()
        for batch in sorted({row.lane.batch for row in members})
        for found in [[row for row in members if row.lane.batch == batch]]
    )


def within_budget(rows: Sequence[Row], budget_ms: float = BUDGET_MS, quantity: str = "p99") -> tuple[BudgetLine, ...]:
    """For each model, mode and device the highest throughput of any batch size whose latency `quantity` fits."""

    def fit(found: Sequence[Row]) -> Fit | None:
        if not found:
            return None
        fitting = [row for row in found if getattr(row.latency_ms, quantity) <= budget_ms]
        best = max(fitting, key=lambda row: row.inferences_per_second, default=None)
        return Fit(best, min(getattr(row.latency_ms, quantity) for row in found))

    return tuple(
        BudgetLine(*key, cells=tuple(fit([row for row in members if row.lane.scope == scope]) for scope in SCOPES))
        for key, members in _groups(rows).items()
    )


def most_efficient(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Of each model, mode, device and scope the row with the most samples a joule; none where no power was reported."""
    best: dict[tuple[Key, str], Row] = {}
    for row in rows:
        key = (_key(row, ""), row.lane.scope)
        if row.per_joule is not None and (key not in best or row.per_joule > (best[key].per_joule or 0)):
            best[key] = row
    return tuple(best.values())


@dataclass(frozen=True)
class Scaling:
    """All GPUs at once against the sum of each alone, on the same model, mode, scope and batch size."""

    row: Row
    alone: float

    @property
    def efficiency(self) -> float:
        return self.row.inferences_per_second / self.alone


def scaling(rows: Sequence[Row]) -> tuple[Scaling, ...]:
    """For each row of all GPUs at once that has one of every GPU alone beside it."""
    found = []
    for row in rows:
        if row.lane.device != ALL_GPUS:
            continue
        point = (row.lane.model, row.lane.mode, row.lane.scope, row.lane.batch)
        alone = [
            other.inferences_per_second
            for other in rows
            if other.lane.device.startswith("gpu:")
            and other.lane.device != ALL_GPUS
            and (other.lane.model, other.lane.mode, other.lane.scope, other.lane.batch) == point
        ]
        if alone and len(alone) == row.gpus:
            found.append(Scaling(row, sum(alone)))
    return tuple(found)


# MLPerf's bar for an engine of lower precision: its share of FP32's accuracy.
ACCURACY_BAR = 0.99


@dataclass(frozen=True)
class AccuracyLine:
    """What verification measured of a mode's engine. `of_reference`: top-1 over that of FP32 on the same samples; None
    where the data had no labels."""

    model: str
    mode: str
    device: str
    accuracy: Accuracy
    of_reference: float | None

    @property
    def reached(self) -> bool | None:
        """Whether it has 99 % of FP32's top-1; None where that is not known."""
        return None if self.of_reference is None else self.of_reference >= ACCURACY_BAR


def accuracy_lines(rows: Sequence[Row], apart: Sequence[MeasuredAccuracy] = ()) -> tuple[AccuracyLine, ...]:
    """A line for each model, mode and device whose engine was verified; then what was measured apart from speed."""
    found: dict[Key, AccuracyLine] = {}
    for row in rows:
        accuracy, key = row.accuracy, _key(row, "")
        if accuracy is None or key in found:
            continue
        found[key] = AccuracyLine(*key, accuracy, _of_reference(accuracy))
    labelled = (AccuracyLine(a.model, a.mode, a.device, a.accuracy, _of_reference(a.accuracy)) for a in apart)
    return (*found.values(), *labelled)


def _of_reference(accuracy: Accuracy) -> float | None:
    if accuracy.top1 is None or not accuracy.reference_top1:
        return None
    return accuracy.top1 / accuracy.reference_top1


@dataclass(frozen=True)
class ScenarioLine:
    """One of MLPerf's scenarios, as LoadGen judged it. `ratio` is LoadGen's offline throughput over our harness's."""

    engine: str
    mode: str
    scope: str
    scenario: str
    batch: int
    valid: bool
    shortened: bool
    seconds: float
    inferences_per_second: float | None
    latency_ms: float | None
    ratio: float | None
    reasons: tuple[str, ...]


def scenario_lines(loadgen: Iterable[Mapping[str, Any]]) -> tuple[ScenarioLine, ...]:
    """LoadGen's results, in the order they were measured.

    Raises:
        InvalidArgumentError: a line lacks a key.
    """
    try:
        return tuple(
            ScenarioLine(
                engine=str(line["engine"]).rpartition("/")[2],
                mode=str(line["mode"]),
                scope=str(line["scope"]),
                scenario=str(line["scenario"]),
                batch=int(line["batch"]),
                valid=bool(line["valid"]),
                shortened=bool(line["shortened"]),
                seconds=float(line["seconds"]),
                inferences_per_second=line.get("inferences_per_second"),
                latency_ms=line.get("latency_ms", line["percentiles_ms"].get("99.00")),
                ratio=line.get("ratio"),
                reasons=tuple(line.get("reasons", ())),
            )
            for line in loadgen
        )
    except KeyError as error:
        raise InvalidArgumentError(f"loadgen.jsonl: key {error.args[0]!r} is missing") from error


def _groups(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    devices = [row.lane.device for row in rows]
    served = ALL_GPUS if ALL_GPUS in devices else next((d for d in devices if d.startswith("gpu:")), "gpu")
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row, served), []).append(row)
    return groups


def _key(row: Row, served: str) -> Key:
    """Model, mode and device. A service's GPUs have no index: they stand on the line `served`."""
    device = row.lane.device
    return row.lane.model, row.lane.mode, served if device == "gpu" and served else device


def _fastest(rows: Iterable[Row], scope: str) -> Row | None:
    return max(
        (row for row in rows if row.lane.scope == scope), key=lambda row: row.inferences_per_second, default=None
    )
