from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.bench.statistics import Window, agree, latency_of, percentile, settled, summarize


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
    assert settled([window(10), window(100), window(101), window(102)], 0.05)
    assert not settled([window(100), window(101), window(102), window(10)], 0.05)


def test_summary_is_of_the_last_three_windows() -> None:
    summary = summarize([window(1), window(100, cpu=10**6), window(101, cpu=10**6), window(102, cpu=10**6)], 0.05)
    assert summary.stable and summary.windows == 4 and summary.calls == 30
    assert summary.interval == pytest.approx((100, 102), rel=1e-6)
    assert 100 < summary.inferences_per_second < 102
    assert summary.cpu_ms == pytest.approx(0.1)
    assert summary.latency.max == pytest.approx(10, rel=1e-3)


def test_summary_of_few_windows_is_not_stable_and_says_no_cpu_time_it_has_not() -> None:
    summary = summarize([window(100, cpu=5), window(100)], 0.05)
    assert not summary.stable and summary.cpu_ms is None
    with pytest.raises(ValueError, match="no windows"):
        summarize([], 0.05)


def test_a_window_without_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one call"):
        Window((), 10, 0)
