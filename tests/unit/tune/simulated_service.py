"""A service whose throughput and latency are functions of the configuration, on a clock that its trials move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from enginehouse.bench.statistics import Latency
from enginehouse.tune.goal import Level, Trial
from enginehouse.tune.space import Point


def level(throughput: float, p99: float, concurrency: int = 8, **fields: object) -> Level:
    """A level of one-row requests; a latency of 0 is that of no answers."""
    latency = Latency(p99, p99, p99, p99, p99, p99) if p99 else None
    values = {"rate": None, "rows": 1, "requests": 100 if p99 else 0, "failed": 0, **fields}
    return Level(concurrency=concurrency, inferences_per_second=throughput, latency=latency, **values)  # type: ignore[arg-type]


@dataclass
class SimulatedService:
    """`rate` and `p99` say what a point measures; `seconds` how long a trial of it takes.

    `lies`: what the first look says of a point's throughput, where that differs from the second.
    """

    rate: Callable[[Point], float]
    p99: Callable[[Point], float]
    seconds: Callable[[Point], float] = lambda point: 1.0
    lies: Mapping[Point, tuple[float, float]] = field(default_factory=dict)
    now: float = 0.0
    asked: list[Point] = field(default_factory=list)
    confirmed: list[Point] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def truth(self, point: Point) -> Trial:
        return Trial(point, (level(self.rate(point), self.p99(point)),))

    async def measure(self, point: Point) -> Trial:
        self.now += self.seconds(point)
        self.asked.append(point)
        if point in self.lies:
            return Trial(point, (level(*self.lies[point]),))
        return self.truth(point)

    async def confirm(self, point: Point, level: Level) -> Trial:
        self.now += self.seconds(point)
        self.confirmed.append(point)
        return self.truth(point)
