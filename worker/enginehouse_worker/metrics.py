"""How far an engine's outputs are from the FP32 reference's, accumulated batch by batch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array

# Probabilities below FP32's resolution near 1 carry no information, but their logarithms would dominate.
_SMALLEST_PROBABILITY = 1e-7


def is_distribution(values: Array) -> bool:
    """Whether every row (last axis) is non-negative and sums to 1, so that the output is a softmax's."""
    if values.dtype.kind != "f" or values.ndim < 2 or values.shape[-1] < 2:
        return False
    rows = values.astype(np.float64)
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=-1), 1.0, atol=1e-3))


def logits(probabilities: Array) -> npt.NDArray[np.float64]:
    """The logits that a softmax was computed from, up to a constant per row: log p, clipped at 1e-7, minus its mean.

    Compared as probabilities, two engines differ little where one class dominates, however wrong the rest.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST_PROBABILITY))
    centred: npt.NDArray[np.float64] = logs - logs.mean(axis=-1, keepdims=True)
    return centred


class OutputComparison:
    """Compares one output of an engine with the reference's.

    SQNR is 10 log10(sum reference^2 / sum (reference - output)^2) over all samples; the cosine is the mean over
    samples. When the reference is a softmax, both are of the logits. `is_classifier`: the output is (samples, classes).
    """

    def __init__(self, reference: Array) -> None:
        self._reference = reference
        self._softmax = is_distribution(reference)
        self.is_classifier = reference.ndim == 2 and reference.shape[1] >= 2 and reference.dtype.kind == "f"
        self._signal = 0.0
        self._noise = 0.0
        self._cosines: list[float] = []
        self._agreeing = 0
        self._samples = 0
        self._largest_error = 0.0

    def add(self, begin: int, output: Array) -> None:
        """Compare the outputs of the samples from number `begin` on.

        Raises:
            ValueError: the shapes differ.
        """
        expected = self._reference[begin : begin + len(output)]
        if expected.shape != output.shape:
            raise ValueError(f"shape {list(output.shape)}, where the reference has {list(expected.shape)}")
        if self.is_classifier:
            self._agreeing += int((expected.argmax(axis=1) == output.argmax(axis=1)).sum())
        self._samples += len(output)
        left, right = (logits(a) if self._softmax else a.astype(np.float64) for a in (expected, output))
        left, right = left.reshape(len(output), -1), right.reshape(len(output), -1)
        error = left - right
        self._signal += float((left**2).sum())
        self._noise += float((error**2).sum())
        self._largest_error = max(self._largest_error, float(np.abs(error).max(initial=0.0)))
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        products = (left * right).sum(axis=1)
        self._cosines += [float(p / n) for p, n in zip(products, norms, strict=True) if n > 0]

    def summary(self) -> dict[str, float | bool]:
        """What was measured; what has no value (the SQNR of equal outputs, `exact`) is absent."""
        found: dict[str, float | bool] = {"max_abs_error": self._largest_error}
        if self._softmax:
            found["compared_logits"] = True
        if self._noise == 0.0:
            found["exact"] = True
        elif not math.isfinite(self._noise):
            found["finite"] = False
        elif self._signal > 0.0:
            found["sqnr_db"] = 10.0 * math.log10(self._signal / self._noise)
        if self._cosines and all(math.isfinite(c) for c in self._cosines):
            found["cosine"] = sum(self._cosines) / len(self._cosines)
        if self.is_classifier:
            found["top1_agreement"] = self._agreeing / self._samples
        return found


def top_k_accuracy(scores: Array, labels: npt.NDArray[np.int64], k: int) -> float:
    """The fraction of samples whose label is among the k highest scores; `scores` is (samples, classes)."""
    highest = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    return float((highest == labels[:, None]).any(axis=1).mean())
