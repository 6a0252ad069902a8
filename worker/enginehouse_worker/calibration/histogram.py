"""Histograms that grow with their data, in memory that does not depend on how much of it there is.

The range is always [-2**e, 2**e) with the smallest e that holds every value seen. When e grows, pairs of bins merge,
which is exact, so the result does not depend on how the values were cut into batches, nor on their order.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array

# On each side of zero. The range used is more than half of 2**e, so a tensor has 2049 to 4096 bins up to its largest
# magnitude; TensorRT's published algorithm uses 2048.
BINS = 4096
# Values are binned so many at a time, so that the temporaries stay in the CPU's cache.
_CHUNK = 1 << 16
# So small that the reciprocal of a bin is still an FP32 number.
_SMALLEST_EXPONENT = -100


class Histogram:
    """Counts of values in 2 * BINS equal bins, with their exact minimum, maximum and number."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(2 * BINS, np.int64)
        self.exponent = _SMALLEST_EXPONENT
        self.minimum = math.inf
        self.maximum = -math.inf
        self.values = 0

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def amax(self) -> float:
        """The largest magnitude seen (0 before any value)."""
        return max(abs(self.minimum), abs(self.maximum)) if self.values else 0.0

    def add(self, values: Array) -> None:
        """Count the values of an array of any shape.

        Raises:
            ValueError: there is a NaN or an infinity among them.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("there is a NaN or an infinity among the values")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.values += flat.size
        self._grow(max(-low, high))
        scale = np.float32(1.0 / self.width)
        for begin in range(0, flat.size, _CHUNK):
            # The scale is a power of two, so the product, and with it the bin, is exact.
            bins = np.floor(flat[begin : begin + _CHUNK] * scale).astype(np.int32) + BINS
            np.minimum(bins, 2 * BINS - 1, out=bins)
            self.counts += np.bincount(bins, minlength=2 * BINS)

    def magnitudes(self) -> npt.NDArray[np.int64]:
        """Counts of |value| in BINS equal bins from 0, cut after the bin of the largest magnitude."""
        folded = self.counts[BINS:] + self.counts[BINS - 1 :: -1]
        return folded[: self.used_bins()]

    def used_bins(self) -> int:
        """How many bins from zero hold every magnitude seen, at least 1."""
        return min(BINS, max(1, math.floor(self.amax / self.width) + 1))

    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each of the 2 * BINS bins."""
        centres: npt.NDArray[np.float64] = (np.arange(2 * BINS, dtype=np.float64) - BINS + 0.5) * self.width
        return centres

    def _grow(self, magnitude: float) -> None:
        if magnitude <= math.ldexp(1.0, self.exponent):
            return
        exponent = math.frexp(magnitude)[1]
        if math.ldexp(1.0, exponent - 1) == magnitude:
            exponent -= 1
        if not self.counts.any():
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(BINS, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = merged
            self.exponent += 1
