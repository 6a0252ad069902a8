"""A histogram that costs a hot path one search and three additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# From a tenth of a millisecond to ten seconds, in nanoseconds.
DURATION_BOUNDS_NS: tuple[int, ...] = tuple(
    int(seconds * 1e9)
    for seconds in (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
)
ROWS_BOUNDS: tuple[int, ...] = tuple(1 << power for power in range(11))


class Histogram:
    """Counts of whole numbers by the first bound that they do not exceed.

    Args:
        bounds: ascending; what exceeds the last is counted too.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0

    def add(self, value: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self, unit: float = 1.0) -> tuple[list[tuple[str, float]], float]:
        """The buckets as Prometheus wants them, each with what is below it and the last "+Inf", and the sum.

        Args:
            unit: what bounds and sum are divided by: 1e9 makes seconds of nanoseconds.
        """
        counts = list(self._counts)
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*self._bounds, None), counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound is None else repr(bound / unit), below))
        return buckets, self._sum / unit
