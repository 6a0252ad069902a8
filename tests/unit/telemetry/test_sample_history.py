"""The ring buffer keeps the newest samples, within its time and its bytes."""

from __future__ import annotations

from enginehouse_telemetry.history import History, Kept
from hypothesis import given
from hypothesis import strategies as st

STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 400)), min_size=1, max_size=60)


@given(STEPS, st.floats(1, 100), st.integers(1, 2000))
def test_bounds_hold_and_nothing_is_dropped_early(steps, seconds, max_bytes) -> None:  # type: ignore[no-untyped-def]
    history = History(seconds, max_bytes)
    appended: list[Kept] = []
    now = 0.0
    for sequence, (wait, size) in enumerate(steps, 1):
        now += wait
        appended.append(Kept(sequence, int(now * 1e9), now, b"x" * size))
        history.append(appended[-1])
        kept = history.between(0, sequence, None, None)
        assert kept == appended[-len(kept) :] and kept
        assert history.bytes == sum(len(item.data) for item in kept)
        if len(kept) > 1:
            assert now - kept[0].monotonic <= seconds and history.bytes <= max_bytes
        if len(kept) < len(appended):
            dropped = appended[-len(kept) - 1]
            with_it = history.bytes + len(dropped.data)
            # Bytes may have forced it out earlier, when others were still there.
            assert now - dropped.monotonic > seconds or with_it > max_bytes or _forced(appended, dropped, max_bytes)
    assert history.newest_sequence == len(appended) and len(history) == len(kept)


def _forced(appended: list[Kept], dropped: Kept, max_bytes: int) -> bool:
    after = [item for item in appended if item.sequence >= dropped.sequence]
    return any(sum(len(item.data) for item in after[:count]) > max_bytes for count in range(1, len(after) + 1))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_between(first: int, last: int, start: int, end: int) -> None:
    history = History(1000, 1 << 20)
    for number in range(1, 16):
        history.append(Kept(number, number, float(number), b""))
    found = [item.sequence for item in history.between(first, last, start, end)]
    assert found == [n for n in range(1, 16) if first <= n <= last and start <= n < end]


def test_a_wall_clock_that_is_set_does_not_empty_the_buffer() -> None:
    history = History(10, 1 << 20)
    history.append(Kept(1, 10**18, 1.0, b""))
    history.append(Kept(2, 5 * 10**18, 2.0, b""))
    assert len(history) == 2
    assert [item.sequence for item in history.between(0, 9, 2 * 10**18, None)] == [2]


def test_empty() -> None:
    assert History(1, 1).newest_sequence == 0 and History(1, 1).between(0, 9, None, None) == []
