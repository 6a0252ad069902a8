"""Ratios between modes, from rows that were measured interleaved. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from enginehouse.bench.rows import Row

BASELINE = "tensorflow-cpu-fp32"


@dataclass(frozen=True)
class Ratio:
    """How many times the throughput of `base` `row` has, and between what."""

    row: Row
    base: Row

    @property
    def value(self) -> float:
        return self.row.inferences_per_second / self.base.inferences_per_second

    @property
    def low(self) -> float:
        return self._bounds[0]

    @property
    def high(self) -> float:
        return self._bounds[1]

    @property
    def confidence(self) -> float | None:
        """Of the interval, when both rows have one of that confidence; else it is the widest that their windows
        allow."""
        return self.row.confidence if self.row.confidence == self.base.confidence else None

    @property
    def _bounds(self) -> tuple[float, float]:
        if self.confidence is None:
            return _over(self.row.interval[0], self.base.interval[1]), _over(
                self.row.interval[1], self.base.interval[0]
            )
        # Errors of a quotient of independent values, to first order: relative half widths add as squares.
        half = math.hypot(*(_relative_half_width(row) for row in (self.row, self.base)))
        return self.value * math.exp(-half), self.value * math.exp(half)

    @property
    def text(self) -> str:
        """ "2.70x (2.65 to 2.75)"."""
        return f"{self.value:.3g}x ({self.low:.3g} to {self.high:.3g})"


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else math.inf


def _relative_half_width(row: Row) -> float:
    low, high = row.interval
    return (high - low) / 2 / row.inferences_per_second


def comparable(row: Row, base: Row) -> bool:
    """Whether the two were measured in turn, in the same round, on the same problem."""
    return row.round is not None and row.round == base.round and same_problem(row, base)


def same_problem(row: Row, base: Row) -> bool:
    """Whether the two are of one model, scope, batch size and number of requests in flight."""
    return (row.lane.model, row.lane.scope, row.lane.batch, row.lane.concurrency) == (
        base.lane.model,
        base.lane.scope,
        base.lane.batch,
        base.lane.concurrency,
    )


def pairs(
    rows: Iterable[Row],
    model: str,
    mode: str,
    base: str,
    scopes: Sequence[str],
    fit: Callable[[Row, Row], bool] = comparable,
) -> tuple[Ratio, ...]:
    """`mode` against `base` on a model, one ratio for each pair that fits, in the first of `scopes` that has any.

    Of several devices, a mode's first counts.
    """
    known = sorted((row for row in rows if row.lane.model == model), key=lambda row: (row.lane.batch, row.lane.device))
    for scope in scopes:
        found: dict[tuple[int, int], Ratio] = {}
        for row in known:
            for other in known:
                if (row.lane.mode, other.lane.mode, row.lane.scope) == (mode, base, scope) and fit(row, other):
                    found.setdefault((row.lane.batch, row.lane.concurrency), Ratio(row, other))
        if found:
            return tuple(found.values())
    return ()


def against_baseline(rows: Sequence[Row]) -> tuple[Ratio, ...]:
    """Every row against the baseline of its round: TensorFlow FP32 on the CPU, or else the slowest mode of the
    model."""
    found = []
    for row in rows:
        round_rows = [other for other in rows if comparable(row, other)]
        if len(round_rows) < 2:
            continue
        preferred = [other for other in round_rows if other.lane.mode == BASELINE]
        base = preferred[0] if preferred else _slowest(rows, round_rows)
        if base is not None and base is not row:
            found.append(Ratio(row, base))
    return tuple(found)


def _slowest(rows: Sequence[Row], round_rows: Sequence[Row]) -> Row | None:
    """The row, in this round, of the mode whose best throughput on the model and scope is lowest: the same in every
    round."""
    lane = round_rows[0].lane
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if (row.lane.model, row.lane.scope) == (lane.model, lane.scope):
            name = (row.lane.mode, row.lane.device)
            best[name] = max(best.get(name, 0.0), row.inferences_per_second)
    slowest = min(best, key=lambda name: best[name])
    return next((row for row in round_rows if (row.lane.mode, row.lane.device) == slowest), None)
