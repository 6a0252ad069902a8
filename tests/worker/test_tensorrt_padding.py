"""When rows run in a larger batch: measured on a clock of the test's own."""

from __future__ import annotations

from enginehouse_worker.backends.tensorrt.padding import MARGIN, PaddingPolicy
from hypothesis import given
from hypothesis import strategies as st

TIMES = st.lists(st.floats(0.1, 10), min_size=33, max_size=33)


@given(TIMES, st.integers(1, 32), st.lists(st.tuples(st.integers(0, 1), st.integers(1, 32)), max_size=80))
def test_a_choice_is_never_slower_and_is_made_once(
    times: list[float], usual: int, asked: list[tuple[int, int]]
) -> None:
    policy = PaddingPolicy(limit=8)
    captured: dict[int, set[int]] = {0: set(), 1: set()}
    for group, rows in asked:
        if rows in captured[group]:
            continue
        measured: list[int] = []

        def seconds(size: int, group: int = group, measured: list[int] = measured) -> float:
            measured.append(size)
            captured[group].add(size)
            return times[size]

        known = policy.known(group, rows)
        before = set(captured[group])
        chosen = policy.choose(group, rows, usual, before, seconds)
        if known is not None:
            assert chosen == known and not measured
        assert chosen >= rows and (chosen == rows or times[chosen] < times[rows] * (1 - MARGIN))
        assert len(set(measured)) <= 2 and set(measured) <= {rows, usual, *before}
        larger = min((size for size in before if size > rows), default=usual)
        if known is None and larger > rows:
            assert policy.known(group, rows) == chosen  # remembered
            assert (chosen == larger) == (times[larger] < times[rows] * (1 - MARGIN))
        if chosen != rows:
            captured[group].discard(rows)
        assert len(policy) <= 8


def test_without_a_larger_size_nothing_is_measured_or_remembered() -> None:
    policy = PaddingPolicy()

    def seconds(size: int) -> float:
        raise AssertionError("measured")

    assert policy.choose("g", 8, 8, [1, 4], seconds) == 8
    assert policy.known("g", 8) is None
