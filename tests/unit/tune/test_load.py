"""Load on calls that behave as a test wants."""

from __future__ import annotations

import asyncio

import pytest

from enginehouse.errors import ResourceExhaustedError
from enginehouse.tune import load
from enginehouse.tune.goal import Goal
from enginehouse.tune.load import Window, closed_loop, offered

WINDOW = Window(0.05, 1, 1.0)


class Calls:
    """Counts what is in flight. `refuse` says which call, by its number, is refused."""

    def __init__(self, seconds: float = 0.001, refuse: frozenset[int] = frozenset()) -> None:
        self.begun = self.ended = self.most = 0
        self._seconds, self._refuse = seconds, refuse

    async def __call__(self) -> None:
        self.begun += 1
        if self.begun in self._refuse:
            self.ended += 1
            raise ResourceExhaustedError("the queue is full")
        self.most = max(self.most, self.begun - self.ended)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.ended += 1


async def test_a_closed_loop_keeps_so_many_in_flight() -> None:
    calls = Calls()
    level = await closed_loop(calls, concurrency=5, rows=4, window=WINDOW)
    assert calls.most == 5 and calls.begun == calls.ended == level.requests
    assert (level.concurrency, level.rate, level.failed, level.rows) == (5, None, 0, 4)
    assert level.latency is not None and level.latency.p50 >= 1.0, "milliseconds"


async def test_a_window_waits_for_enough_requests_but_not_for_ever() -> None:
    slow = Calls(0.02)
    level = await closed_loop(slow, concurrency=1, rows=1, window=Window(0.01, 5, 60.0))
    assert level.requests >= 5
    level = await closed_loop(Calls(0.02), concurrency=1, rows=1, window=Window(0.01, 10**9, 0.05))
    assert 1 <= level.requests < 10**9


async def test_failures_are_counted_and_the_first_is_told() -> None:
    level = await closed_loop(Calls(refuse=frozenset({1, 3})), concurrency=2, rows=1, window=Window(0.05, 10, 5.0))
    assert level.failed == 2 and level.requests >= 8 and level.error == "the queue is full"
    assert "2 of" in Goal().refusal(level)
    refusing = await closed_loop(Calls(refuse=frozenset(range(10**4))), concurrency=1, rows=1, window=WINDOW)
    assert refusing.latency is None and refusing.failed > 0


async def test_exactly_the_rate_is_offered_whatever_the_answers_take() -> None:
    calls = Calls(0.05)
    level = await offered(calls, rate=100.0, rows=2, window=Window(0.2, 1, 1.0))
    assert calls.begun == calls.ended == level.requests == 20
    assert level.rate == 100.0 and level.concurrency is None
    assert calls.most > 1, "it does not wait for answers"


async def test_what_is_too_far_behind_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_BEHIND", 3)
    calls = Calls(0.5)
    level = await offered(calls, rate=50.0, rows=1, window=Window(0.2, 1, 1.0))
    assert calls.begun == level.requests == 3 and level.failed == 7
    assert "7 of 10 requests failed" in Goal().refusal(level)


async def test_latency_counts_from_when_a_request_was_due() -> None:
    # One at a time behind a lock: those that wait are late, though each takes 20 ms.
    lock = asyncio.Lock()

    async def call() -> None:
        async with lock:
            await asyncio.sleep(0.02)

    level = await offered(call, rate=200.0, rows=1, window=Window(0.2, 1, 1.0))
    assert level.latency is not None and level.latency.max > 10 * 20
    assert "offered" in Goal().refusal(level), "it answered far fewer than were offered"


async def test_nothing_goes_on_behind_a_loop_that_was_cancelled() -> None:
    calls = Calls(30.0)
    for measuring in (
        closed_loop(calls, concurrency=3, rows=1, window=Window(60, 1, 60)),
        offered(calls, rate=1000.0, rows=1, window=Window(60, 1, 60)),
    ):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(measuring, 0.05)
        assert calls.begun == calls.ended > 0
