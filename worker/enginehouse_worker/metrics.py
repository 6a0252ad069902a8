"""How far an engine's outputs are from the FP32 reference's, accumulated batch by batch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array

# Probabilities below FP32's resolution near 1 carry no information, but their logarithms would dominate.
_SMALLEST_PROBABILITY = 1e-7
# The noise ratio of what should be all zeros and is not: -300 dB.
LARGEST_NOISE_RATIO = 1e30


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


def decibels(noise_ratio: float) -> float:
    """The SQNR of noise energy over signal energy, in dB.

    Raises:
        ValueError: the ratio is not a positive number.
    """
    return -10.0 * math.log10(noise_ratio)


class Agreement:
    """Compares two tensors of samples, batch by batch; what it keeps does not grow with the elements of a sample.

    SQNR is 10 log10(sum expected^2 / sum (expected - actual)^2) over all samples; the cosine is the mean over samples
    that are not all zero. `softmax`: both are probabilities, and are compared as logits.
    """

    def __init__(self, softmax: bool = False) -> None:
        self._softmax = softmax
        self._signal = 0.0
        self._noise = 0.0
        self._cosines = 0.0
        self._compared = 0
        self.largest_error = 0.0

    def add(self, expected: Array, actual: Array) -> None:
        """Compare some samples (dimension 0).

        Raises:
            ValueError: the shapes differ.
        """
        if expected.shape != actual.shape:
            raise ValueError(f"shape {list(actual.shape)}, where the reference has {list(expected.shape)}")
        left, right = (logits(a) if self._softmax else a.astype(np.float64) for a in (expected, actual))
        # What has no dimension 0 is one sample.
        rows = actual.shape[0] if actual.ndim else 1
        left, right = (a.reshape(rows, math.prod(actual.shape[1:])) for a in (left, right))
        error = left - right
        self._signal += float((left**2).sum())
        self._noise += float((error**2).sum())
        self.largest_error = max(self.largest_error, float(np.abs(error).max(initial=0.0)))
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        products = (left * right).sum(axis=1)
        # `~(norms <= 0)` keeps a NaN, so that it shows.
        counted = ~(norms <= 0)
        self._cosines += float((products[counted] / norms[counted]).sum())
        self._compared += int(counted.sum())

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self._noise == 0.0

    @property
    def finite(self) -> bool:
        """Whether there was no NaN or infinity."""
        return math.isfinite(self._noise)

    @property
    def noise_ratio(self) -> float:
        """Noise energy over signal energy: 0 when nothing differs, infinite when it has no finite value.

        Where the reference is 0 and the other is not, it is the largest that is told from infinity: -300 dB.
        """
        if self.exact:
            return 0.0
        if not self.finite:
            return math.inf
        return min(LARGEST_NOISE_RATIO, self._noise / self._signal) if self._signal > 0.0 else LARGEST_NOISE_RATIO

    @property
    def sqnr_db(self) -> float | None:
        """In dB; None when nothing differs, or there is no finite value."""
        ratio = self.noise_ratio
        return decibels(ratio) if 0.0 < ratio < math.inf else None

    @property
    def cosine(self) -> float | None:
        """None when every sample was all zero, or there is no finite value."""
        if not self._compared or not math.isfinite(self._cosines):
            return None
        return self._cosines / self._compared


class OutputComparison:
    """Compares one output of an engine with the reference's: an `Agreement`, and the classes that win.

    `softmax`: the reference is a softmax, and SQNR and cosine are of the logits. `classifier`: see `is_classifier`.
    """

    def __init__(self, *, softmax: bool, classifier: bool) -> None:
        self._softmax = softmax
        self._agreement = Agreement(softmax)
        self._classifier = classifier
        self._agreeing = 0
        self._samples = 0

    def add(self, expected: Array, output: Array) -> None:
        """Compare the outputs of some samples.

        Raises:
            ValueError: the shapes differ.
        """
        self._agreement.add(expected, output)
        if self._classifier:
            self._agreeing += int((expected.argmax(axis=1) == output.argmax(axis=1)).sum())
        self._samples += len(output)

    def summary(self) -> dict[str, float | bool]:
        """What was measured; what has no value (the SQNR of equal outputs, `exact`) is absent."""
        agreement = self._agreement
        found: dict[str, float | bool] = {"max_abs_error": agreement.largest_error}
        if self._softmax:
            found["compared_logits"] = True
        if agreement.exact:
            found["exact"] = True
        elif not agreement.finite:
            found["finite"] = False
        elif agreement.sqnr_db is not None:
            found["sqnr_db"] = agreement.sqnr_db
        if agreement.cosine is not None:
            found["cosine"] = agreement.cosine
        if self._classifier:
            found["top1_agreement"] = self._agreeing / self._samples
        return found


def is_classifier(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bool:
    """Whether an output is scores of (samples, classes)."""
    return len(shape) == 2 and shape[1] >= 2 and dtype.kind == "f"


def top_k_hits(scores: Array, labels: npt.NDArray[np.int64], k: int) -> int:
    """The number of samples whose label is among the k highest scores; `scores` is (samples, classes)."""
    highest = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    return int((highest == labels[:, None]).any(axis=1).sum())
