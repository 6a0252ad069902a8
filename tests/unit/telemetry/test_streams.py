"""Fan-out: each stream at its period, slow readers told what they skipped, the sampler at the fastest period."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from enginehouse_telemetry.pace import next_due
from enginehouse_telemetry.streams import Streams, StreamsClosed
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.v1 import telemetry_pb2 as pb


def drain(subscription) -> list[tuple[int, int]]:  # type: ignore[no-untyped-def]
    """Sequence and skipped of what waits."""

    async def collect() -> list[tuple[int, int]]:
        found = []
        while subscription._queue:
            delivery = await subscription.next()
            found.append((delivery.sample.sequence, delivery.skipped))
        return found

    return asyncio.run(collect())


def publish(streams: Streams, times: list[float]) -> None:
    for sequence, at in enumerate(times, 1):
        streams.publish(pb.Sample(sequence=sequence), at)


def test_the_sampler_runs_at_the_fastest_period() -> None:
    asked: list[float] = []
    streams = Streams(1.0, asked.append)
    slow = streams.subscribe(10.0)
    fast = streams.subscribe(0.1)
    also = streams.subscribe(0.1)
    assert asked == [0.1] and streams.period == 0.1
    fast.close()
    assert asked == [0.1]
    also.close()
    also.close()
    slow.close()
    assert asked == [0.1, 1.0] and len(streams) == 0


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.floats(-0.2, 0.2), min_size=60, max_size=60),
)
def test_decimation(sampler_tenths: int, factor: int, jitter: list[float]) -> None:
    own = sampler_tenths / 10
    period = own * factor / 4 if factor > 4 else own
    streams = Streams(own, lambda _: None, capacity=1000)
    subscription = streams.subscribe(period)
    times = [100 + (number + shake) * own for number, shake in enumerate(jitter)]
    publish(streams, times)
    taken = [times[sequence - 1] for sequence, _ in drain(subscription)]
    if period == own:
        assert len(taken) == len(times)
    span = times[-1] - times[0]
    assert abs(len(taken) - 1 - span / period) <= 1.5
    assert all(after - before > period - 1.5 * own for before, after in itertools.pairwise(taken))


def test_a_gap_is_not_made_up_for() -> None:
    streams = Streams(1.0, lambda _: None)
    subscription = streams.subscribe(1.0)
    publish(streams, [1.0, 2.0, 30.0, 31.0])
    assert [sequence for sequence, _ in drain(subscription)] == [1, 2, 3, 4]


def test_a_slow_reader_skips_and_learns_how_many() -> None:
    streams = Streams(1.0, lambda _: None, capacity=3)
    slow, other = streams.subscribe(1.0), streams.subscribe(1.0)
    publish(streams, [float(number) for number in range(1, 11)])
    assert drain(slow) == [(8, 7), (9, 0), (10, 0)]
    streams.publish(pb.Sample(sequence=11), 11.0)
    assert drain(slow) == [(11, 0)]
    assert drain(other) == [(9, 8), (10, 0), (11, 0)]


async def test_closing_delivers_what_waits_and_then_ends() -> None:
    streams = Streams(1.0, lambda _: None)
    subscription = streams.subscribe(1.0)
    streams.publish(pb.Sample(sequence=1), 1.0)
    streams.close()
    assert (await subscription.next()).sample.sequence == 1
    with pytest.raises(StreamsClosed):
        await subscription.next()
    with pytest.raises(StreamsClosed):
        streams.subscribe(1.0)


async def test_closing_wakes_a_reader_that_waits() -> None:
    streams = Streams(1.0, lambda _: None)
    with streams.subscribe(1.0) as subscription:
        waiting = asyncio.ensure_future(subscription.next())
        await asyncio.sleep(0)
        streams.close()
        with pytest.raises(StreamsClosed):
            await waiting


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.1, 60))
def test_the_grid(due: float, late: float, period: float) -> None:
    following, missed = next_due(due, due + late, period)
    assert due + late < following + 1e-6 and following <= due + late + period + 1e-6
    assert following == pytest.approx(due + period * (missed + 1))


def test_a_stream_may_ask_for_a_shorter_queue_and_not_for_a_longer_one() -> None:
    streams = Streams(1.0, lambda _: None, capacity=4)
    newest, usual, greedy = (streams.subscribe(1.0, queue) for queue in (1, 0, 100))
    publish(streams, [float(second) for second in range(10)])
    assert drain(newest) == [(10, 9)]
    assert [sequence for sequence, _ in drain(usual)] == [sequence for sequence, _ in drain(greedy)] == [7, 8, 9, 10]
