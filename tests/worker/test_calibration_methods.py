"""Histograms and the ranges chosen from them, on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from enginehouse_worker.calibration.histogram import BINS, Histogram
from enginehouse_worker.calibration.methods import (
    METHODS,
    choose_range,
    entropy_threshold,
    squared_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    scales=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    offset=st.floats(-5, 5),
)
def test_streaming_gives_the_histogram_of_all_values_in_any_order(
    seed: int, scales: list[float], offset: float
) -> None:
    random = np.random.default_rng(seed)
    batches = [((random.standard_normal(300) + offset) * scale).astype(np.float32) for scale in scales]
    whole = histogram_of(np.concatenate(batches))
    for order in (batches, batches[::-1]):
        streamed = Histogram()
        for batch in order:
            streamed.add(batch)
        assert streamed.exponent == whole.exponent
        assert (streamed.minimum, streamed.maximum, streamed.values) == (whole.minimum, whole.maximum, whole.values)
        np.testing.assert_array_equal(streamed.counts, whole.counts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-20, 1e20))
def test_every_value_is_counted_in_its_bin(seed: int, scale: float) -> None:
    values = (np.random.default_rng(seed).standard_normal(1000) * scale).astype(np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == 1000
    assert histogram.magnitudes().sum() == 1000
    assert BINS // 2 <= histogram.used_bins() <= BINS
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    # numpy.histogram counts a value on the last edge in the last bin, as we do.
    expected, _ = np.histogram(values.astype(np.float64), edges)
    np.testing.assert_array_equal(expected, histogram.counts)


def test_values_that_are_not_finite_are_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            Histogram().add(np.array([1.0, bad], np.float32))


def test_a_tensor_that_is_always_zero_has_a_range_in_every_method() -> None:
    for method in METHODS:
        found = choose_range(histogram_of(np.zeros(100, np.float32)), method, 99.99)
        assert found.amax >= 0 and np.isfinite(found.amax) and found.rmin <= 0 <= found.rmax


def test_max_is_what_was_seen() -> None:
    found = choose_range(histogram_of(np.array([-3.0, 0.5, 2.0], np.float32)), "max", 0)
    assert (found.minimum, found.maximum, found.amax, found.rmin, found.rmax) == (-3.0, 2.0, 3.0, -3.0, 2.0)


def test_percentile_of_a_uniform_distribution() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)
    found = choose_range(histogram_of(values), "percentile", 90.0)
    assert found.amax == pytest.approx(0.9, abs=0.01)
    assert found.rmin == pytest.approx(-0.9, abs=0.01)
    assert found.rmax == pytest.approx(0.9, abs=0.01)


def test_percentile_ignores_rare_outliers() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    values[:3] = 1000.0
    found = choose_range(histogram_of(values), "percentile", 99.9)
    assert found.amax < 4.0


def test_mse_keeps_a_uniform_distribution_and_clips_a_long_tail() -> None:
    random = np.random.default_rng(0)
    uniform = choose_range(histogram_of(random.uniform(-1, 1, 200_000).astype(np.float32)), "mse", 0)
    assert uniform.amax > 0.97
    laplace = choose_range(histogram_of(random.laplace(0, 1, 200_000).astype(np.float32)), "mse", 0)
    assert laplace.amax < 0.9 * max(abs(laplace.minimum), laplace.maximum)


def test_mse_of_a_gaussian_is_near_the_known_optimum() -> None:
    """The optimal clipping of a unit Gaussian at 8 bits is about 3.9 deviations (Banner et al., arXiv:1810.05723)."""
    values = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    assert choose_range(histogram_of(values), "mse", 0).amax == pytest.approx(3.92, abs=0.25)


def test_squared_error_of_clipping_alone() -> None:
    counts, values = np.array([1.0, 1.0]), np.array([0.0, 3.0])
    assert squared_error(counts, values, 0.0, 1.0, 255) == pytest.approx(4.0)
    assert squared_error(counts, values, 0.0, 0.0, 255) == pytest.approx(9.0)


def brute_force_entropy(magnitudes: np.ndarray, levels: int) -> int:
    """Migacz's algorithm, written as the slides have it."""
    bins = magnitudes.astype(np.float64)
    bins[0] = bins[1]
    best, best_divergence = bins.size, np.inf
    for kept in range(levels, bins.size + 1):
        p = bins[:kept].copy()
        p[-1] += bins[kept:].sum()
        level = np.arange(kept) * levels // kept
        q = np.zeros(kept)
        for number in range(levels):
            members = (level == number) & (bins[:kept] > 0)
            if members.any():
                q[members] = bins[:kept][level == number].sum() / members.sum()
        if q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        filled = p > 0
        if (q[filled] == 0).any():
            continue
        divergence = float((p[filled] * np.log(p[filled] / q[filled])).sum())
        if divergence < best_divergence - 1e-12:
            best, best_divergence = kept, divergence
    return best


@pytest.mark.parametrize("seed", range(6))
def test_entropy_is_the_published_algorithm(seed: int) -> None:
    random = np.random.default_rng(seed)
    draw = [random.standard_normal, lambda n: random.laplace(size=n), lambda n: random.exponential(size=n) ** 2][
        seed % 3
    ]
    counts, _ = np.histogram(np.abs(draw(20_000)), 300)
    threshold = entropy_threshold(counts, 32, most_clipped=1.0)
    best = brute_force_entropy(counts, 32)
    assert threshold == (best if best == counts.size else best - 0.5)


def test_entropy_keeps_a_distribution_far_from_zero() -> None:
    values = (np.random.default_rng(0).standard_normal(50_000) * 0.1 + 0.5).astype(np.float32)
    assert choose_range(histogram_of(values), "entropy", 0).amax > np.quantile(values, 0.98)


def test_the_bound_on_clipping_is_what_keeps_values_away_from_zero() -> None:
    """What a global average pooling makes: few values, none near zero."""
    values = np.random.default_rng(0).gamma(16.0, 0.05, 2048 * 32).astype(np.float32)
    histogram = histogram_of(values)

    def sqnr(amax: float) -> float:
        scale = amax / 127
        noise = values - np.clip(np.rint(values / scale), -127, 127) * scale
        return float(10 * np.log10((values**2).sum() / (noise**2).sum()))

    assert sqnr(entropy_threshold(histogram.magnitudes(), 128, most_clipped=1.0) * histogram.width) < 10
    assert sqnr(choose_range(histogram, "entropy", 0).amax) > 40


def test_entropy_clips_outliers_but_keeps_a_uniform_distribution() -> None:
    random = np.random.default_rng(1)
    outliers = random.standard_normal(200_000).astype(np.float32)
    outliers[:2] = 60.0
    assert choose_range(histogram_of(outliers), "entropy", 0).amax < 10.0
    uniform = choose_range(histogram_of(random.uniform(0, 1, 200_000).astype(np.float32)), "entropy", 0)
    assert uniform.amax > 0.9
    assert uniform.rmin == 0.0
    assert uniform.rmax == pytest.approx(uniform.amax, abs=1e-3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), offset=st.floats(-3, 3), method=st.sampled_from(sorted(METHODS)))
def test_ranges_stay_within_what_was_seen_and_hold_zero(seed: int, offset: float, method: str) -> None:
    values = (np.random.default_rng(seed).standard_normal(5000) + offset).astype(np.float32)
    found = choose_range(histogram_of(values), method, 99.0)
    assert 0 < found.amax <= max(abs(found.minimum), abs(found.maximum)) * (1 + 1e-6)
    assert min(found.minimum, 0) - 1e-6 <= found.rmin <= 0 <= found.rmax <= max(found.maximum, 0) + 1e-6
