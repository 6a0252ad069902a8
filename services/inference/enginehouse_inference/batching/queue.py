"""When queued requests become a batch, and which. No clock, no I/O: the caller says what time it is."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from enginehouse_inference.batching.lane import Lane
from enginehouse_inference.batching.policy import Batch, BatchPolicy, Entry, QueueFullError, Slice, TimeoutAction

T = TypeVar("T")
# The lane of requests that are alone in their batches.
_ALONE = object()


@dataclass
class BatchQueue(Generic[T]):
    """Requests that wait for an instance.

    Among requests of one shape, and among those that are alone in their batches: the highest priority first; of one
    priority first in, first out, those that were delayed last. Shapes never mix; when batches of several shapes could
    leave, the one whose first request has the highest priority does, of equals the one that has waited longest.
    """

    policy: BatchPolicy
    _lanes: dict[Hashable, Lane[T]] = field(default_factory=dict)
    _size: int = 0
    _at_level: dict[int, int] = field(default_factory=dict)
    # Deadlines and timeouts, earliest first; those of requests that are gone stay until they come up or are too many.
    _alarms: list[tuple[int, int, Entry[T]]] = field(default_factory=list)
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
        priority: int = 0,
        timeout_ns: int | None = None,
    ) -> Entry[T]:
        """Queue a request of `rows` rows.

        Args:
            deadline_ns: nobody waits for its answer from then on.
            alone: it shares no batch and is not cut, however many rows it has; it waits for no delay.
            priority: as the request asks, from 1; 0 for none.
            timeout_ns: how long it asks to wait at most, where the policy lets it.

        Raises:
            QueueFullError: its level of the queue is full.
        """
        level, waiting = 1, self.policy.queue
        if self.policy.levels:
            level = self.policy.level(priority)
            waiting = self.policy.waiting(level)
        count = self._at_level.get(level, 0)
        if count >= waiting.max_queue_size:
            raise QueueFullError(waiting.max_queue_size, level if self.policy.levels else 0)
        timeout = None
        limit = waiting.queue_timeout_ns if timeout_ns is None else waiting.time_ns(timeout_ns)
        if limit is not None:
            if waiting.timeout_action is TimeoutAction.DELAY:
                timeout = now_ns + limit
            else:
                deadline_ns = now_ns + limit if deadline_ns is None else min(deadline_ns, now_ns + limit)
        entry = Entry(item, rows, _ALONE if alone else shape, now_ns, deadline_ns, alone, level, timeout)
        lane = self._lanes.get(entry.shape)
        if lane is None:
            lane = self._lanes[entry.shape] = Lane()
        lane.add(entry)
        self._size += 1
        self._at_level[level] = count + 1
        if deadline_ns is not None:
            self._alarm(deadline_ns, entry)
        if timeout is not None:
            self._alarm(timeout, entry)
        return entry

    def remove(self, entry: Entry[T]) -> None:
        """Take back what is left of a request; nothing when all of it is in batches."""
        if entry.gone:
            return
        entry.gone = True
        self._size -= 1
        self._at_level[entry.level] -= 1
        lane = self._lanes[entry.shape]
        lane.remove(entry)
        if not lane:
            del self._lanes[entry.shape]

    def expire(self, now_ns: int) -> list[Entry[T]]:
        """Remove and return the requests whose deadline has passed, and delay those whose time in the queue is over."""
        late: list[Entry[T]] = []
        while (moment := self.next_alarm_ns()) is not None and moment <= now_ns:
            _, _, entry = heapq.heappop(self._alarms)
            if entry.deadline_ns is not None and entry.deadline_ns <= now_ns:
                self.remove(entry)
                late.append(entry)
            elif not entry.delayed and not entry.taken:  # what was begun is finished
                self._lanes[entry.shape].delay(entry)
        return late

    def drain(self) -> list[Entry[T]]:
        """Remove and return everything."""
        entries = [entry for lane in self._lanes.values() for entry in lane]
        for entry in entries:
            entry.gone = True
        self._lanes.clear()
        self._alarms.clear()
        self._at_level.clear()
        self._size = 0
        return entries

    def ready(self, now_ns: int, least: int = 0) -> bool:
        """Whether `take` would give a batch."""
        return any(self._leaving(lane, now_ns, least) for lane in self._lanes.values())

    def take(self, now_ns: int, least: int = 0) -> Batch[T] | None:
        """The batch that should run now on a free instance, or None when waiting is better (or nothing waits).

        Args:
            least: rows below which waiting for more is better anyway. Requests that share no batch leave all the same.
        """
        if not self._lanes:
            return None
        if len(self._lanes) == 1:  # as nearly always
            (lane,) = self._lanes.values()
            count = self._leaving(lane, now_ns, least)
            return Batch(tuple(self._cut(lane, count))) if count else None
        ready = [
            (lane.head.rank, lane.head.arrived_ns, index, lane, count)
            for index, lane in enumerate(self._lanes.values())
            if (count := self._leaving(lane, now_ns, least))
        ]
        if not ready:
            return None
        *_, lane, count = min(ready, key=lambda item: item[:3])
        return Batch(tuple(self._cut(lane, count)))

    def next_event_ns(self) -> int | None:
        """When to look again though nothing arrives: a delay ends, or a deadline or timeout passes. None: never."""
        if not self._size:
            return None
        delay = self.policy.max_queue_delay_ns
        events = [lane.patience_ns(delay) for lane in self._lanes.values()]
        if (alarm := self.next_alarm_ns()) is not None:
            events.append(alarm)
        return min(events, default=None)

    def next_alarm_ns(self) -> int | None:
        """The earliest deadline or timeout of a request that waits."""
        while self._alarms and self._alarms[0][2].gone:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def _alarm(self, moment_ns: int, entry: Entry[T]) -> None:
        self._added += 1
        heapq.heappush(self._alarms, (moment_ns, self._added, entry))
        if len(self._alarms) > 4 * self._size + 64:
            self._alarms = [item for item in self._alarms if not item[2].gone]
            heapq.heapify(self._alarms)

    def _leaving(self, lane: Lane[T], now_ns: int, least: int) -> int:
        """How many entries of a lane should leave now (0: wait); the last may leave in part."""
        policy = self.policy
        limit, preferences = policy.max_batch_size, policy.preferred_batch_sizes
        if not policy.join or lane.head.alone:
            return 1
        rows, count, preferred = 0, 0, 0
        full = False
        for entry in lane:
            # A request is cut only where it must be, because its answer waits for its last row.
            left = entry.rows - entry.taken
            if rows and rows + left > limit:
                full = True
                break
            rows += left
            count += 1
            if rows in preferences:
                preferred = count
            if rows >= limit:
                full = True
                break
        if rows < least and not full:
            return 0
        if full or not policy.max_queue_delay_ns or now_ns >= lane.patience_ns(policy.max_queue_delay_ns):
            # Out of patience with a preferred size at hand: take that, the rest has its own first request now.
            return count if full else (preferred or count)
        return preferred

    def _cut(self, lane: Lane[T], count: int) -> Iterator[Slice[T]]:
        room = self.policy.max_batch_size
        for _ in range(count):
            entry = lane.head
            rows = entry.left if entry.alone else min(entry.left, room)
            room -= rows
            start = entry.taken
            entry.taken += rows
            if not entry.left:
                self.remove(entry)
            yield Slice(entry, start, start + rows)
