"""What may be tried: engines, batch sizes, queue delays and instances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.errors import InvalidArgumentError

# In the order in which they are searched: what matters most comes first.
AXES = ("engine", "max_batch_size", "instances", "delay_ms")
DELAYS_MS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
INSTANCES = (1, 2, 4)


@dataclass(frozen=True)
class Point:
    """One configuration. `engine` is an engine's resource name, `max_batch_size` 0 for engines without a batch."""

    engine: str
    max_batch_size: int
    delay_ms: float = 0.0
    instances: int = 1


@dataclass(frozen=True)
class Space:
    """The configurations that may be tried. All values rise.

    Attributes:
        batches: the maximum batch sizes for each engine, by its name; (0,) for one without a batch.
        delays_ms: queue delays, milliseconds.
        instances: execution contexts for each device.
    """

    batches: Mapping[str, tuple[int, ...]]
    delays_ms: tuple[float, ...] = DELAYS_MS
    instances: tuple[int, ...] = INSTANCES

    def __post_init__(self) -> None:
        if not self.batches:
            raise InvalidArgumentError("there is no engine to try")
        for values in (*self.batches.values(), self.delays_ms, self.instances):
            if not values or list(values) != sorted(set(values)):
                raise InvalidArgumentError(f"{list(values)} is no list of rising values")

    @property
    def size(self) -> int:
        """How many different configurations there are."""
        delays = len(self.delays_ms)
        per_engine = (sum(delays if batch > 1 else 1 for batch in batches) for batches in self.batches.values())
        return sum(per_engine) * len(self.instances)

    def start(self) -> Point:
        """Where a search begins: the first engine with all of its batch, and without a delay, as `load` serves it."""
        engine = next(iter(self.batches))
        return Point(engine, self.batches[engine][-1], self.delays_ms[0], self.instances[0])

    def along(self, point: Point, axis: str) -> Sequence[Point]:
        """The points that differ from a point on one axis alone, in rising order, the point itself among them.

        Another engine takes the largest batch that it has below the point's. Without joining there is no delay.
        """
        if axis == "engine":
            return [self._with_engine(point, engine) for engine in self.batches]
        if axis == "max_batch_size":
            return list(
                dict.fromkeys(
                    self.canonical(dataclasses.replace(point, max_batch_size=b)) for b in self.batches[point.engine]
                )
            )
        if axis == "delay_ms":
            return list(dict.fromkeys(self.canonical(dataclasses.replace(point, delay_ms=d)) for d in self.delays_ms))
        return [dataclasses.replace(point, instances=count) for count in self.instances]

    def canonical(self, point: Point) -> Point:
        """The point, without a delay where no requests are joined: those are all one configuration."""
        return point if point.max_batch_size > 1 else dataclasses.replace(point, delay_ms=self.delays_ms[0])

    def _with_engine(self, point: Point, engine: str) -> Point:
        allowed = self.batches[engine]
        fitting = [batch for batch in allowed if batch <= point.max_batch_size]
        chosen = fitting[-1] if fitting else allowed[0]
        return self.canonical(dataclasses.replace(point, engine=engine, max_batch_size=chosen))


def batch_sizes(largest: int, rows: int) -> tuple[int, ...]:
    """Maximum batch sizes worth trying: powers of two from the rows of a request to the engine's largest batch, and
    that. (0,) for an engine without a batch (`largest` 0)."""
    if largest < 1:
        return (0,)
    sizes = {largest, min(rows, largest)}
    size = 1
    while size < largest:
        if size >= rows:
            sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))
