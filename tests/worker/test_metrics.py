"""SQNR, cosine, agreement and accuracy against plain NumPy on everything at once; the gate's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.metrics import Agreement, OutputComparison, is_classifier, is_distribution, top_k_hits
from enginehouse_worker.stages.params import Params
from enginehouse_worker.stages.verify import refuse_if_inaccurate
from hypothesis import assume, given, settings
from hypothesis import strategies as st


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def compared(reference: np.ndarray) -> OutputComparison:
    classifier = is_classifier(reference.shape, reference.dtype)
    return OutputComparison(softmax=is_distribution(reference), classifier=classifier)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(2, 12),
    st.integers(1, 7),
    st.booleans(),
    st.floats(1e-4, 3.0),
)
def test_batches_give_what_all_at_once_gives(
    seed: int, samples: int, classes: int, batch: int, probabilities: bool, noise: float
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((samples, classes)) * 2
    # Logits that are further apart give probabilities below the smallest that is told from 0.
    expected = np.clip(scores, -6, 6).astype(np.float32)
    actual = np.clip(scores + noise * random.standard_normal(scores.shape), -6, 6).astype(np.float32)
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    if probabilities:
        expected, actual = softmax(expected), softmax(actual)
        # The logits again, up to a constant for each sample, as far as FP32 probabilities tell.
        left, right = (x - x.mean(axis=1, keepdims=True) for x in (left, right))
    # Two scores clipped to one value have no direction to compare.
    assume(min(np.linalg.norm(x, axis=1).min() for x in (left, right)) > 1e-3)
    comparison = compared(expected)
    for begin in range(0, samples, batch):
        comparison.add(expected[begin : begin + batch], actual[begin : begin + batch])
    found = comparison.summary()
    assert found["sqnr_db"] == pytest.approx(
        10 * np.log10(np.sum(left**2) / np.sum((left - right) ** 2)), rel=1e-3, abs=1e-2
    )
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(left, right, strict=True)]
    assert found["cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found["max_abs_error"] == pytest.approx(np.abs(left - right).max(), rel=1e-2, abs=1e-5)
    assert found["top1_agreement"] == np.mean(np.argmax(expected, axis=1) == np.argmax(actual, axis=1))
    assert found.get("compared_logits", False) == probabilities


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 12), st.integers(1, 12))
def test_accuracy_counts_labels_among_the_highest(seed: int, samples: int, classes: int, k: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((samples, classes))
    labels = random.integers(0, classes, samples)
    hits = [label in np.argsort(row)[::-1][:k] for row, label in zip(scores, labels, strict=True)]
    assert top_k_hits(scores, labels, k) == sum(hits)


def test_what_has_no_value_is_absent() -> None:
    ones = np.ones((2, 3), np.float32)
    same = compared(ones)
    same.add(ones, ones)
    assert same.summary()["exact"] is True and "sqnr_db" not in same.summary()
    broken = compared(ones)
    broken.add(ones, np.full((2, 3), np.nan, np.float32))
    assert broken.summary()["finite"] is False
    assert not {"sqnr_db", "cosine"} & set(broken.summary())
    silent = Agreement()
    silent.add(np.zeros((2, 3)), ones)
    assert silent.sqnr_db == -300 and silent.cosine is None and silent.noise_ratio == 1e30
    with pytest.raises(ValueError, match="shape"):
        silent.add(ones, ones[:1])


def gate(verification: dict[str, Any], **params: float) -> None:
    verification = {"outputs": {}, "samples": 40, "accuracy_measured": "top1" in verification, **verification}
    refuse_if_inaccurate(verification, Params(params, tuple(params), "verify"), "INT8")


def test_the_gate_names_its_numbers_and_what_to_do() -> None:
    labelled = {"top1": 0.90, "reference_top1": 0.92, "labelled_samples": 40, "sqnr_db": 3.0}
    with pytest.raises(WorkerError) as caught:
        gate(labelled, minimum_relative_accuracy=0.99)
    assert caught.value.code == "FAILED_PRECONDITION"
    for part in ("0.9000", "0.9200", "97.83%", "99%", "40 labelled samples", "another method", "exclu"):
        assert part in caught.value.message
    assert caught.value.details["reference_top1"] == 0.92
    with pytest.raises(WorkerError) as caught:
        gate({"sqnr_db": 8.25}, minimum_sqnr_db=10.0)
    for part in ("8.25 dB", "10 dB", "no labels", "40 samples", "automatic exclusion"):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("verification", "params"),
    [
        ({"top1": 0.95, "reference_top1": 0.955, "labelled_samples": 9}, {"minimum_relative_accuracy": 0.99}),
        # Labels decide where there are labels.
        ({"top1": 0.9, "reference_top1": 0.9, "labelled_samples": 9, "sqnr_db": 1.0}, {"minimum_sqnr_db": 10.0}),
        ({"sqnr_db": 10.0}, {"minimum_sqnr_db": 10.0, "minimum_relative_accuracy": 0.99}),
        ({"exact": True}, {"minimum_sqnr_db": 10.0}),
        ({"sqnr_db": -5.0}, {}),
    ],
)
def test_good_engines_pass(verification: dict[str, Any], params: dict[str, float]) -> None:
    gate(verification, **params)
