"""Noise of a model's outputs against the FP32 model's: energy of the difference over energy of the signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.metrics import LARGEST_NOISE_RATIO, Agreement, decibels, is_distribution


class Noise:
    """Accumulates, batch by batch, the noise of each output. Softmax outputs are compared as logits."""

    def __init__(self, softmax: Mapping[str, bool]) -> None:
        self._agreements = {name: Agreement(value) for name, value in softmax.items()}

    def add(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """Compare some samples of every output.

        Raises:
            ValueError: the shapes differ.
        """
        for name, agreement in self._agreements.items():
            agreement.add(expected[name], actual[name])

    @property
    def ratio(self) -> float:
        """Of the worst output; 0 when nothing differs, -300 dB for an output without a finite value."""
        return min(LARGEST_NOISE_RATIO, max(agreement.noise_ratio for agreement in self._agreements.values()))


def softmax_outputs(outputs: Mapping[str, Array]) -> dict[str, bool]:
    """Which outputs are compared, and which of them are a softmax's: the floating-point ones, or all when none is.

    Raises:
        WorkerError: INVALID_ARGUMENT when one has a NaN or an infinity.
    """
    for name, value in outputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise WorkerError("INVALID_ARGUMENT", f"the FP32 model's output {name!r} has a NaN or an infinity")
    numeric = {name: value for name, value in outputs.items() if value.dtype.kind in "fiub"}
    if not numeric:
        raise WorkerError("INVALID_ARGUMENT", f"none of the model's outputs {sorted(outputs)} is numeric")
    floats = {name: value for name, value in numeric.items() if value.dtype.kind == "f"}
    return {name: is_distribution(value) for name, value in (floats or numeric).items()}


def sqnr(ratio: float) -> float | None:
    """In dB, three decimals; None when nothing differs."""
    return round(decibels(ratio), 3) if ratio > 0.0 else None


def shares(ratios: Sequence[float]) -> list[float]:
    """Each one's part of their sum."""
    total = sum(ratios)
    return [ratio / total if total > 0.0 else 0.0 for ratio in ratios]
