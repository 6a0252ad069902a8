"""How far the load on one configuration rises."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.tune.goal import Goal, Level

# More requests in flight that bring less than this bring nothing.
GAIN = 0.03
FLAT_LEVELS = 2


def rising(lowest: int, highest: int) -> tuple[int, ...]:
    """Doubled numbers of requests in flight from the lowest on, and the highest."""
    found = []
    level = lowest
    while level < highest:
        found.append(level)
        level *= 2
    return (*found, highest)


def go_on(goal: Goal, measured: Sequence[Level]) -> bool:
    """Whether a higher level can still be worth measuring: nothing failed, latency has room, throughput still rises."""
    if not measured:
        return True
    last = measured[-1]
    if last.latency is None or last.failed:
        return False
    if goal.p99_ms is not None and last.latency.p99 > goal.p99_ms:
        return False
    if len(measured) <= FLAT_LEVELS:
        return True
    before = max(level.inferences_per_second for level in measured[:-FLAT_LEVELS])
    return max(level.inferences_per_second for level in measured[-FLAT_LEVELS:]) > before * (1 + GAIN)
