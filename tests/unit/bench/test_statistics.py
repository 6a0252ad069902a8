from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.bench.statistics import (
    Window,
    agree,
    confidence_interval,
    latency_of,
    median_interval,
    percentile,
    settled,
    student_t,
    summarize,
    warm,
)


def window(rate: float, calls: int = 10, cpu: int | None = None) -> Window:
    wall = round(calls * 1e9 / rate)
    return Window((wall // calls,) * calls, wall, calls, cpu)


def test_percentile_is_nearest_rank() -> None:
    values = [10, 20, 30, 40]
    assert [percentile(values, q) for q in (0, 25, 50, 51, 75, 99, 100)] == [10, 10, 20, 30, 30, 40, 40]


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=200), st.floats(0, 100))
def test_percentile_occurred_and_covers(values: list[int], q: float) -> None:
    found = percentile(sorted(values), q)
    assert found in values
    assert sum(value <= found for value in values) >= q / 100 * len(values) - 1e-6
    assert found == np.percentile(values, q, method="inverted_cdf") or abs(q / 100 * len(values) % 1) < 1e-6


def test_percentiles_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match=r"\[0, 100\]"):
        percentile([1], 101)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50))
def test_latencies_are_ordered(values: list[int]) -> None:
    latency = latency_of(values)
    assert latency.p50 <= latency.p90 <= latency.p95 <= latency.p99 <= latency.max == max(values) / 1e6
    assert min(values) / 1e6 <= latency.mean * (1 + 1e-9) and latency.mean <= latency.max * (1 + 1e-9)


def test_agreement_needs_three_windows_close_to_each_other() -> None:
    assert not agree([100, 100], 0.05)
    assert agree([100, 102, 104], 0.05)
    assert not agree([100, 104, 106], 0.05)
    assert warm([window(10), window(100), window(101), window(102)], 0.05)
    assert not warm([window(100), window(101), window(102), window(10)], 0.05)


def test_ten_windows_settle_when_they_say_one_throughput() -> None:
    flat = [window(rate) for rate in (100, 101, 99, 100, 101, 99, 100, 101, 99, 100)]
    assert settled(flat, 0.05) and settled([window(10), *flat], 0.05)
    assert not settled(flat[:9], 0.05), "an interval needs ten"
    assert not settled([window(100 + 2 * step) for step in range(10)], 0.05), "it still rises"
    assert not settled([window(rate) for rate in (50, 150) * 5], 0.05), "too wide"


def test_summary_is_of_the_last_ten_windows() -> None:
    ten = [window(rate, cpu=10**6) for rate in (100, 101, 102, 100, 101, 102, 100, 101, 102, 101)]
    summary = summarize([window(1), *ten], 0.05)
    assert summary.stable and summary.windows == 11 and summary.calls == 100 and summary.confidence == 0.95
    low, high = summary.interval
    assert 100 < low < summary.inferences_per_second < high < 102
    assert summary.cpu_ms == pytest.approx(0.1)
    assert summary.latency.max == pytest.approx(10, rel=1e-3)


def test_summary_of_few_windows_is_not_stable_and_says_no_cpu_time_it_has_not() -> None:
    summary = summarize([window(100, cpu=5), window(110)], 0.05)
    assert not summary.stable and summary.cpu_ms is None
    assert summary.interval == pytest.approx((100, 110), rel=1e-6) and summary.confidence is None, "a range of two"
    with pytest.raises(ValueError, match="no windows"):
        summarize([], 0.05)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045)])
def test_students_t_is_that_of_the_tables(freedom: int, value: float) -> None:
    assert student_t(0.95, freedom) == pytest.approx(value, rel=5e-3)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = [low <= 100 <= high for low, high in
               (confidence_interval(list(random.normal(100, 5, 10))) for _ in range(4000))]  # fmt: skip
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_a_window_without_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one call"):
        Window((), 10, 0)


def test_the_medians_interval_is_that_of_the_binomial_tables() -> None:
    # Ranks of the 95 % interval: 1 and 6 of 6, 2 and 9 of 10, 6 and 15 of 20.
    for count, low in ((6, 1), (10, 2), (20, 6)):
        assert median_interval([float(n) for n in range(count, 0, -1)]) == (low, count + 1 - low)
    assert median_interval([1.0] * 5) is None and median_interval([]) is None
