"""What is counted of requests and batches."""

from __future__ import annotations

import pytest
from enginehouse_inference.models.histogram import DURATION_BOUNDS_NS, Histogram
from enginehouse_inference.models.statistics import Statistics, reason_of
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)


@given(st.lists(st.integers(0, 20_000_000_000)))
def test_a_bucket_holds_what_does_not_exceed_its_bound(values: list[int]) -> None:
    histogram = Histogram(DURATION_BOUNDS_NS)
    for value in values:
        histogram.add(value)
    buckets, total = histogram.cumulative(1e9)
    assert [name for name, _ in buckets][-1] == "+Inf"
    for (name, count), bound in zip(buckets, (*DURATION_BOUNDS_NS, 10**30), strict=True):
        assert count == sum(value <= bound for value in values), name
    assert total == pytest.approx(sum(values) / 1e9)


def test_bounds_are_written_as_people_read_them() -> None:
    buckets, _ = Histogram(DURATION_BOUNDS_NS).cumulative(1e9)
    assert [name for name, _ in buckets[:3]] == ["0.0001", "0.00025", "0.0005"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ResourceExhaustedError("full"), "REJECTED"),
        (DeadlineExceededError("late"), "REJECTED"),
        (UnavailableError("the worker died"), "BACKEND"),
        (InternalError("the engine failed"), "BACKEND"),
        (InvalidArgumentError("a wrong shape"), "OTHER"),
        (ValueError(), "OTHER"),
    ],
)
def test_failures_have_tritons_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_failure_and_a_caller_who_left_are_counted_apart() -> None:
    statistics = Statistics()
    statistics.failed(ResourceExhaustedError("full"), 5)
    statistics.cancelled(7)
    assert statistics.failures == {"REJECTED": 1, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}
    assert (statistics.fail.ns, statistics.cancel.ns) == (5, 7)
