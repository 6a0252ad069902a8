"""Fan-out of samples to streams: each at its own period, none waiting for another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from enginehouse.v1 import telemetry_pb2 as pb


class StreamsClosed(Exception):
    """The server is stopping."""


@dataclass(frozen=True)
class Delivery:
    """A sample, and how many before it the stream skipped because its reader was slow."""

    sample: pb.Sample
    skipped: int


class Subscription:
    """One stream's bounded queue. A context manager: leaving it ends the subscription."""

    def __init__(self, streams: Streams, period: float, capacity: int) -> None:
        self.period = period
        self._streams = streams
        self._queue: deque[pb.Sample] = deque()
        self._capacity = capacity
        self._due: float | None = None
        self._skipped = 0
        self._closed = False
        self._wake = asyncio.Event()

    def offer(self, sample: pb.Sample, at: float, sampler_period: float) -> None:
        """Take a sample if one is due.

        Args:
            at: when it was taken, on the monotonic clock.
            sampler_period: seconds between samples; one that is early by less than half of it is the nearest there is.
        """
        every = self.period <= sampler_period  # then no grid: a late sample must not cost the next one
        if not every and self._due is not None and at + sampler_period / 2 < self._due:
            return
        # On a grid, so that a late sample does not delay those after it, unless a whole period was lost.
        grid = at if self._due is None or at - self._due > self.period else self._due
        self._due = grid + self.period
        if len(self._queue) == self._capacity:
            self._queue.popleft()  # the oldest: a slow reader wants to know what is, not what was
            self._skipped += 1
        self._queue.append(sample)
        self._wake.set()

    async def next(self) -> Delivery:
        """The next sample.

        Raises:
            StreamsClosed: there will be none.
        """
        while not self._queue:
            if self._closed:
                raise StreamsClosed
            self._wake.clear()
            await self._wake.wait()
        delivery = Delivery(self._queue.popleft(), self._skipped)
        self._skipped = 0
        return delivery

    def close(self) -> None:
        """Deliver what is queued, then nothing. Any number of times."""
        self._closed = True
        self._streams.remove(self)
        self._wake.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Streams:
    """All subscriptions. The sampler runs at the shortest period that any asks for, or at its own if that is shorter.

    Args:
        period: the sampler's own, in seconds.
        on_period: told the period whenever it changes.
        capacity: samples that a stream may have waiting.
    """

    def __init__(self, period: float, on_period: Callable[[float], None], capacity: int = 16) -> None:
        self._own_period = self._period = period
        self._on_period = on_period
        self._capacity = capacity
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def period(self) -> float:
        """Seconds between samples now."""
        return self._period

    def subscribe(self, period: float, queue: int = 0) -> Subscription:
        """A subscription that gets a sample every `period` seconds; at most `queue` wait for it (`capacity` when 0).

        Raises:
            StreamsClosed: the server is stopping.
        """
        if self._closed:
            raise StreamsClosed
        subscription = Subscription(self, period, min(queue or self._capacity, self._capacity))
        self._subscriptions.add(subscription)
        self._adapt()
        return subscription

    def remove(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._adapt()

    def publish(self, sample: pb.Sample, at: float) -> None:
        """Offer a sample, taken at `at` on the monotonic clock, to all."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(sample, at, self._period)

    def close(self) -> None:
        """End all streams, now and later."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def _adapt(self) -> None:
        period = min([self._own_period, *(subscription.period for subscription in self._subscriptions)])
        if period != self._period:
            self._period = period
            self._on_period(period)
