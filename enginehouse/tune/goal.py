"""What is wanted of a configuration, and which of two is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enginehouse.bench.statistics import Latency
from enginehouse.tune.space import Point

Objective = Literal["throughput", "latency"]

# Of an offered rate, so much must be answered within the window.
KEPT = 0.95


@dataclass(frozen=True)
class Level:
    """What was measured under one load: so many requests in flight, or so many a second.

    Attributes:
        concurrency: requests in flight; None where a rate was offered.
        rate: requests offered a second; None where the loop was closed.
        rows: of each request.
        requests: answered.
        failed: not answered: refused, late, or lost.
        inferences_per_second: rows answered a second.
        latency: of answered requests; None when there are none.
        generator_cpu: cores that the load generator itself used; near 1 it was the limit, not the server.
        error: the first failure.
    """

    concurrency: int | None
    rate: float | None
    rows: int
    requests: int
    failed: int
    inferences_per_second: float
    latency: Latency | None
    generator_cpu: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Trial:
    """One configuration, measured. `error`: why it could not be served at all."""

    point: Point
    levels: tuple[Level, ...] = ()
    error: str = ""
    confirmation: bool = False


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    Attributes:
        objective: "throughput": the most inferences a second; "latency": the lowest 99th percentile.
        p99_ms: limit of the 99th percentile; None: no limit.
        min_throughput: inferences a second, at least.
    """

    objective: Objective = "throughput"
    p99_ms: float | None = None
    min_throughput: float = 0.0

    def refusal(self, level: Level) -> str:
        """Why a level does not do; empty when it does."""
        if level.latency is None:
            return f"no request was answered: {level.error}"
        if level.failed:
            return f"{level.failed} of {level.failed + level.requests} requests failed: {level.error}"
        if self.p99_ms is not None and level.latency.p99 > self.p99_ms:
            return f"p99 {level.latency.p99:.3g} ms is above {self.p99_ms:g} ms"
        if level.rate is not None and level.inferences_per_second < KEPT * level.rate * level.rows:
            offered = level.rate * level.rows
            return f"{level.inferences_per_second:.4g} inferences/s of {offered:.4g} offered"
        if level.inferences_per_second < self.min_throughput:
            return f"{level.inferences_per_second:.4g} inferences/s are below {self.min_throughput:g}"
        return ""

    def best_level(self, trial: Trial) -> Level | None:
        """The level that says most for a configuration, among those that do; else the nearest to it; None of none."""
        good = [level for level in trial.levels if not self.refusal(level)]
        if good:
            return max(good, key=self._value)
        return min(trial.levels, key=self._violation, default=None)

    def feasible(self, trial: Trial) -> bool:
        """Whether some level does."""
        return any(not self.refusal(level) for level in trial.levels)

    def verdict(self, trial: Trial) -> str:
        """Why a configuration is rejected; empty when it is not."""
        if trial.error:
            return trial.error
        level = self.best_level(trial)
        return "nothing was measured" if level is None else self.refusal(level)

    def score(self, trial: Trial) -> tuple[int, float]:
        """Larger is better: what does before what does not, before what cannot be served. The second is positive, and
        its ratios mean something: throughput, or one over latency, or how near a rejected one comes."""
        level = self.best_level(trial)
        if level is None:
            return 0, 1.0
        if self.refusal(level):
            return 1, 1 / (1 + self._violation(level))
        return 2, self._value(level)

    def better(self, one: Trial, other: Trial, tolerance: float = 0.0) -> bool:
        """Whether one is better than another by more than `tolerance`, a fraction: less may be noise."""
        (kind, value), (other_kind, other_value) = self.score(one), self.score(other)
        return kind > other_kind or (kind == other_kind and value > other_value * (1 + tolerance))

    def _value(self, level: Level) -> float:
        if self.objective == "latency":
            assert level.latency is not None
            return 1 / max(level.latency.p99, 1e-6)
        return level.inferences_per_second

    def _violation(self, level: Level) -> float:
        """By how much a level misses, as fractions of what was wanted; 0 for one that does."""
        if level.latency is None:
            return 1e9
        missed = level.failed / (level.failed + level.requests)
        if self.p99_ms is not None:
            missed += max(0.0, level.latency.p99 / self.p99_ms - 1)
        wanted = max(self.min_throughput, KEPT * (level.rate or 0.0) * level.rows)
        if wanted:
            missed += max(0.0, wanted / max(level.inferences_per_second, 1e-9) - 1)
        return missed
