"""When queued requests become a batch, and which. No clock, no I/O: the caller says what time it is."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
# The lane of requests that are alone in their batches.
_ALONE = object()


@dataclass(frozen=True)
class BatchPolicy:
    """How a model batches. Times in nanoseconds.

    Args:
        max_batch_size: rows of a batch at most. A larger request is split.
        join: whether requests may share a batch; without it each is alone in its own.
        max_queue_delay_ns: how long the oldest waits for others while an instance is free.
        preferred_batch_sizes: sizes worth leaving at once for, without waiting for the delay.
        max_queue_size: requests that may wait.
        queue_timeout_ns: how long a request may wait; None without limit.
    """

    max_batch_size: int = 1
    join: bool = True
    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 1024
    queue_timeout_ns: int | None = None


@dataclass(eq=False)
class Entry(Generic[T]):
    """A request in the queue. `taken`: rows that are in batches already. `alone`: it is a whole batch, of any size."""

    item: T
    rows: int
    shape: Hashable
    arrived_ns: int
    deadline_ns: int | None
    alone: bool = False
    taken: int = 0
    gone: bool = False

    @property
    def left(self) -> int:
        return self.rows - self.taken


@dataclass(frozen=True)
class Slice(Generic[T]):
    """Rows `start` to `stop` of an entry."""

    entry: Entry[T]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Slices to run as one tensor, in this order, all of one shape."""

    slices: tuple[Slice[T], ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass
class BatchQueue(Generic[T]):
    """Requests that wait for an instance.

    First in, first out among requests of one shape, and among those that are alone in their batches. Shapes never mix;
    when batches of several shapes could leave, the one whose first request has waited longest does.
    """

    policy: BatchPolicy
    _lanes: dict[Hashable, deque[Entry[T]]] = field(default_factory=dict)
    _size: int = 0
    # Deadlines, earliest first; those of requests that are gone stay until they come up or are too many.
    _deadlines: list[tuple[int, int, Entry[T]]] = field(default_factory=list)
    _added: int = 0

    def __len__(self) -> int:
        return self._size

    def add(
        self,
        item: T,
        rows: int,
        shape: Hashable,
        now_ns: int,
        deadline_ns: int | None = None,
        *,
        alone: bool = False,
    ) -> Entry[T]:
        """Queue a request of `rows` rows.

        Args:
            alone: it shares no batch and is not cut, however many rows it has; it waits for no delay.

        Raises:
            QueueFullError: the queue is full.
        """
        if self._size >= self.policy.max_queue_size:
            raise QueueFullError
        if self.policy.queue_timeout_ns is not None:
            limit = now_ns + self.policy.queue_timeout_ns
            deadline_ns = limit if deadline_ns is None else min(deadline_ns, limit)
        entry = Entry(item, rows, _ALONE if alone else shape, now_ns, deadline_ns, alone)
        shape = entry.shape
        self._lanes.setdefault(shape, deque()).append(entry)
        self._size += 1
        if deadline_ns is not None:
            self._added += 1
            heapq.heappush(self._deadlines, (deadline_ns, self._added, entry))
            if len(self._deadlines) > 2 * self._size + 64:
                self._deadlines = [item for item in self._deadlines if not item[2].gone]
                heapq.heapify(self._deadlines)
        return entry

    def remove(self, entry: Entry[T]) -> None:
        """Take back what is left of a request; nothing when all of it is in batches."""
        if entry.gone:
            return
        entry.gone = True
        self._size -= 1
        lane = self._lanes[entry.shape]
        lane.remove(entry)
        if not lane:
            del self._lanes[entry.shape]

    def expire(self, now_ns: int) -> list[Entry[T]]:
        """Remove and return the requests whose deadline has passed."""
        late = []
        while (deadline := self.next_deadline_ns()) is not None and deadline <= now_ns:
            _, _, entry = heapq.heappop(self._deadlines)
            self.remove(entry)
            late.append(entry)
        return late

    def drain(self) -> list[Entry[T]]:
        """Remove and return everything."""
        entries = list(self._entries())
        for entry in entries:
            entry.gone = True
        self._lanes.clear()
        self._deadlines.clear()
        self._size = 0
        return entries

    def take(self, now_ns: int, least: int = 0) -> Batch[T] | None:
        """The batch that should run now on a free instance, or None when waiting is better (or nothing waits).

        Args:
            least: rows below which waiting for more is better anyway. Requests that share no batch leave all the same.
        """
        ready = [
            (lane[0].arrived_ns, index, lane, count)
            for index, lane in enumerate(self._lanes.values())
            if (count := self._leaving(lane, now_ns, least))
        ]
        if not ready:
            return None
        _, _, lane, count = min(ready, key=lambda item: item[:2])
        return Batch(tuple(self._cut(lane, count)))

    def next_event_ns(self) -> int | None:
        """When to look again though nothing arrives: a delay ends or a deadline passes. None: never."""
        events = [lane[0].arrived_ns + self.policy.max_queue_delay_ns for lane in self._lanes.values()]
        if (deadline := self.next_deadline_ns()) is not None:
            events.append(deadline)
        return min(events, default=None)

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline of a request that waits."""
        while self._deadlines and self._deadlines[0][2].gone:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _entries(self) -> Iterator[Entry[T]]:
        for lane in self._lanes.values():
            yield from lane

    def _leaving(self, lane: deque[Entry[T]], now_ns: int, least: int) -> int:
        """How many entries of a lane should leave now (0: wait); the last may leave in part."""
        limit = self.policy.max_batch_size
        if not self.policy.join or lane[0].alone:
            return 1
        rows, count, preferred = 0, 0, 0
        full = False
        for entry in lane:
            # A request is cut only where it must be, because its answer waits for its last row.
            if rows and rows + entry.left > limit:
                full = True
                break
            rows += entry.left
            count += 1
            if rows in self.policy.preferred_batch_sizes:
                preferred = count
            if rows >= limit:
                full = True
                break
        if rows < least and not full:
            return 0
        if full or now_ns - lane[0].arrived_ns >= self.policy.max_queue_delay_ns:
            # Out of patience with a preferred size at hand: take that, the rest has its own first request now.
            return count if full else (preferred or count)
        return preferred

    def _cut(self, lane: deque[Entry[T]], count: int) -> Iterator[Slice[T]]:
        room = self.policy.max_batch_size
        for _ in range(count):
            entry = lane[0]
            rows = entry.left if entry.alone else min(entry.left, room)
            room -= rows
            start = entry.taken
            entry.taken += rows
            if not entry.left:
                self.remove(entry)
            yield Slice(entry, start, start + rows)
