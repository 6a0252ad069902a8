"""The sampler's thread: no sleeps, only events."""

from __future__ import annotations

import queue
import threading
import time

from enginehouse_telemetry.readings import NodeReading
from enginehouse_telemetry.sampler import Sampler


class Source:
    """Hands out readings; may be told to fail or to hang."""

    def __init__(self, failures: int = 0) -> None:
        self.sequence = 0
        self.failures = failures
        self.hang = threading.Event()
        self.hang.set()
        self.entered = threading.Event()
        self.closed = threading.Event()

    def read(self) -> NodeReading:
        self.entered.set()
        self.hang.wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("bad answer")
        self.sequence += 1
        return NodeReading(0, 0.0, self.sequence)

    def close(self) -> None:
        self.closed.set()


def test_samples_follow_one_another_and_closing_releases_the_source() -> None:
    source, taken = Source(), queue.Queue[NodeReading]()
    sampler = Sampler(source, taken.put, 0.01)
    sampler.start()
    assert [taken.get(timeout=30).sequence for _ in range(5)] == [1, 2, 3, 4, 5]
    assert sampler.close()
    assert source.closed.is_set()


def test_a_shorter_period_takes_effect_at_once() -> None:
    source, taken = Source(), queue.Queue[NodeReading]()
    sampler = Sampler(source, taken.put, 3600.0)
    sampler.start()
    taken.get(timeout=30)
    sampler.set_period(0.01)
    assert taken.get(timeout=30).sequence == 2
    assert sampler.close()


def test_a_failure_costs_one_sample() -> None:
    source, taken = Source(failures=2), queue.Queue[NodeReading]()
    sampler = Sampler(source, taken.put, 0.01)
    sampler.start()
    assert taken.get(timeout=30).sequence == 1
    assert sampler.close()


def test_a_call_that_hangs_does_not_hold_up_the_end() -> None:
    source, taken = Source(), queue.Queue[NodeReading]()
    source.hang.clear()
    sampler = Sampler(source, taken.put, 0.01)
    sampler.start()
    assert not sampler.close(timeout=0.05)
    source.hang.set()
    assert source.closed.wait(30)


def test_samples_that_took_too_long_are_counted_not_made_up_for() -> None:
    source, taken = Source(), queue.Queue[NodeReading]()
    sampler = Sampler(source, taken.put, 0.01)
    source.hang.clear()
    sampler.start()
    assert source.entered.wait(30)
    time.sleep(0.05)  # several periods
    source.hang.set()
    taken.get(timeout=30)
    taken.get(timeout=30)
    assert sampler.close()
    assert sampler.missed >= 1
