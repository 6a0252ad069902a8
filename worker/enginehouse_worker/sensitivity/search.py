"""How many of the most harmful layers to leave in FP32, until the outputs are good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """The first `count` layers are to be excluded; `ratio` is the noise ratio measured then."""

    count: int
    ratio: float
    reached: bool


def search(
    noises: Sequence[float], everything: float, target: float, limit: int, measure: Callable[[int], float]
) -> Found:
    """The smallest number of layers whose exclusion brings the outputs' noise down to `target`.

    Layers' noises add up roughly, since rounding errors are hardly correlated. So the sum over the layers that stay
    quantized, times a factor that fits the last measurement, says how many to try; the number grows until a measurement
    reaches the target, then halving the interval finds the least. A handful of measurements for a hundred layers.

    Args:
        noises: each layer's noise ratio when it alone is quantized, in the order of exclusion: the most harmful first.
        everything: the measured noise ratio with every layer quantized.
        limit: exclude at most so many.
        measure: the measured noise ratio without the first so many layers.

    Returns:
        When the target is not reached, the number with the least noise among those tried.
    """
    limit = min(limit, len(noises))
    tried = {0: everything}
    low, high = 0, 0 if everything <= target else None
    while high is None and low < limit:
        count = min(limit, max(_estimate(noises, low, tried[low], target), low + max(1, low // 4)))
        tried[count] = measure(count)
        if tried[count] <= target:
            high = count
        else:
            low = count
    if high is None:
        best = min(tried, key=lambda count: (tried[count], count))
        return Found(best, tried[best], False)
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = measure(middle)
        if tried[middle] <= target:
            high = middle
        else:
            low = middle
    return Found(high, tried[high], True)


def _estimate(noises: Sequence[float], tried: int, ratio: float, target: float) -> int:
    """How many exclusions reach the target, by the sum of what remains, scaled to what was measured at `tried`."""
    remaining = sum(noises[tried:])
    if remaining <= 0.0:
        return len(noises)
    factor = ratio / remaining
    for count in range(tried, len(noises)):
        if factor * remaining <= target:
            return count
        remaining -= noises[count]
    return len(noises)
