"""How a range is chosen from a histogram.

Each method gives `amax` for symmetric quantization (the range is [-amax, amax]) and [rmin, rmax] for asymmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enginehouse_worker.calibration.histogram import BINS, Histogram

# What 8-bit symmetric quantization has for magnitudes, and 8-bit asymmetric for all.
_LEVELS = 128
_CANDIDATES = 128
# The published rule has no such bound. Of values that lie away from zero, as global average pooling makes them, a low
# threshold keeps next to nothing, but that perfectly, and the rule takes it. Measured on Fashion-MNIST (see
# results/README.md): without the bound INT8 has 85.7 % top-1 and 11.7 dB, with it 92.2 % and 29.7 dB, FP32 92.4 %.
_MOST_CLIPPED = 0.01


@dataclass(frozen=True)
class Range:
    """A tensor's range. `minimum` and `maximum` are what was seen; the rest is what a method made of it."""

    minimum: float
    maximum: float
    amax: float
    rmin: float
    rmax: float


def choose_range(histogram: Histogram, method: str, percentile: float) -> Range:
    """Apply a method ("entropy", "max", "percentile" or "mse").

    Raises:
        KeyError: there is no such method.
    """
    amax, rmin, rmax = METHODS[method](histogram, percentile)
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    # The range always holds 0, which paddings and ReLUs produce and quantization keeps exact.
    return Range(histogram.minimum, histogram.maximum, amax, min(max(rmin, low), 0.0), max(min(rmax, high), 0.0))


def max_range(histogram: Histogram, _percentile: float = 0.0) -> tuple[float, float, float]:
    """Everything seen."""
    return histogram.amax, histogram.minimum, histogram.maximum


def entropy_range(histogram: Histogram, _percentile: float = 0.0) -> tuple[float, float, float]:
    """The threshold at which the distribution of magnitudes loses least by quantization to 128 levels.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for each candidate number of bins i, the reference P is the
    first i bins with all outliers added to the last; the candidate Q merges the same bins (without outliers) into 128
    levels and spreads each level over its non-empty bins; the threshold minimizes the divergence KL(P || Q). As in
    NVIDIA's pytorch-quantization, the first bin, which a ReLU fills with zeros, counts like the second: zero is exact
    at any scale. The asymmetric range is what was seen, clipped at the same threshold.
    """
    amax = entropy_threshold(histogram.magnitudes(), _LEVELS) * histogram.width
    amax = min(amax, histogram.amax)
    return amax, max(histogram.minimum, -amax), min(histogram.maximum, amax)


def entropy_threshold(magnitudes: npt.NDArray[np.int64], levels: int, most_clipped: float = _MOST_CLIPPED) -> float:
    """The best number of bins to keep, as m + 0.5 for the last bin m kept, in bins (see `entropy_range`).

    KL needs sums over levels only: sum P log P and, because Q is constant over the non-empty bins of a level,
    sum over levels of P(level) log Q(level). So all candidates are computed at once from cumulative sums.
    """
    counts = magnitudes.astype(np.float64)
    if counts.size > 1:
        counts[0] = counts[1]
    total = counts.sum()
    if counts.size <= levels or total == 0:
        return float(counts.size)
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])

    kept = np.arange(levels, counts.size + 1)
    bounds = -(-np.arange(levels + 1)[None, :] * kept[:, None] // levels)
    level_counts = np.diff(cumulative[bounds], axis=1)
    level_filled = np.diff(filled[bounds], axis=1)
    inside = cumulative[kept]
    outliers = total - inside
    last = counts[kept - 1]

    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(level_counts / level_filled / inside[:, None])
    log_q[level_counts == 0] = 0.0
    p_log_p = (entropy[kept] - _x_log_x(last) + _x_log_x(last + outliers)) / total - np.log(total)
    p_log_q = ((level_counts * log_q).sum(axis=1) + outliers * log_q[:, -1]) / total
    divergence = p_log_p - p_log_q
    # Q gives an empty bin nothing; outliers put there would make the divergence infinite.
    divergence[(last == 0) & (outliers > 0)] = np.inf
    divergence[(inside == 0) | (outliers > most_clipped * total)] = np.inf
    best = int(kept[np.argmin(divergence)])
    return float(best) if best == counts.size else best - 0.5


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float, float]:
    """The magnitude that `percentile` percent of the values do not exceed; asymmetric: half the rest on each side."""
    magnitudes = histogram.magnitudes()
    amax = min(_quantile(magnitudes, percentile / 100.0) * histogram.width, histogram.amax)
    tail = (1.0 - percentile / 100.0) / 2.0
    rmax = (_quantile(histogram.counts, 1.0 - tail) - BINS) * histogram.width
    rmin = (BINS - _quantile(histogram.counts[::-1], 1.0 - tail)) * histogram.width
    return amax, max(rmin, histogram.minimum), min(rmax, histogram.maximum)


def mse_range(histogram: Histogram, _percentile: float = 0.0) -> tuple[float, float, float]:
    """The range, a fraction of what was seen, with the least mean squared error of quantization and clipping."""
    fractions = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    used = np.flatnonzero(histogram.counts)
    counts, centres = histogram.counts[used].astype(np.float64), histogram.centres()[used]
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    symmetric = [squared_error(counts, centres, -f * histogram.amax, f * histogram.amax, 254) for f in fractions]
    asymmetric = [squared_error(counts, centres, f * low, f * high, 255) for f in fractions]
    best = fractions[int(np.argmin(asymmetric))]
    return float(fractions[int(np.argmin(symmetric))] * histogram.amax), float(best * low), float(best * high)


def squared_error(
    counts: npt.NDArray[np.float64], values: npt.NDArray[np.float64], low: float, high: float, steps: int
) -> float:
    """The summed squared error when values are rounded to `steps` equal steps over [low, high] (0 is a step)."""
    if high <= low:
        return float((counts * values**2).sum())
    scale = (high - low) / steps
    origin = np.rint(-low / scale)
    quantized = (np.clip(np.rint(values / scale) + origin, 0, steps) - origin) * scale
    return float((counts * (values - quantized) ** 2).sum())


def _quantile(counts: npt.NDArray[np.int64], fraction: float) -> float:
    """The upper edge, in bins, of the first bin at which the cumulative count reaches the fraction."""
    cumulative = np.cumsum(counts)
    return float(np.searchsorted(cumulative, fraction * cumulative[-1], side="left") + 1)


def _x_log_x(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = x * np.log(np.where(x > 0, x, 1.0))
    return result


METHODS: dict[str, Callable[[Histogram, float], tuple[float, float, float]]] = {
    "entropy": entropy_range,
    "max": max_range,
    "percentile": percentile_range,
    "mse": mse_range,
}
