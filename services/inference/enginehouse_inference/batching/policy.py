"""How a model's requests become batches, as configured, and the values that the queue works with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class TimeoutAction(Enum):
    """What becomes of a request whose time in the queue is over."""

    # It is answered with an error and not computed.
    REJECT = "reject"
    # It leaves after the requests of its level whose time is not over.
    DELAY = "delay"


@dataclass(frozen=True)
class QueuePolicy:
    """How requests of one priority level wait. Times in nanoseconds.

    Args:
        max_queue_size: requests that may wait.
        queue_timeout_ns: how long a request may wait; None without limit.
        allow_timeout_override: whether a request may name a shorter time.
    """

    max_queue_size: int = 1024
    queue_timeout_ns: int | None = None
    timeout_action: TimeoutAction = TimeoutAction.REJECT
    allow_timeout_override: bool = True

    def time_ns(self, asked_ns: int | None) -> int | None:
        """How long a request may wait that asks for `asked_ns`; None without limit."""
        limit = self.queue_timeout_ns
        if asked_ns is None or not self.allow_timeout_override:
            return limit
        return asked_ns if limit is None else min(asked_ns, limit)


@dataclass(frozen=True)
class BatchPolicy:
    """How a model batches. Times in nanoseconds.

    Args:
        max_batch_size: rows of a batch at most. A larger request is split.
        join: whether requests may share a batch; without it each is alone in its own.
        max_queue_delay_ns: how long the oldest waits for others while an instance is free.
        preferred_batch_sizes: sizes worth leaving at once for, without waiting for the delay.
        queue: how requests wait where there are no priorities.
        levels: how requests of each priority wait, the first to leave first. Empty: there are no priorities.
        default_level: the priority (from 1) of requests that name none or one that does not exist.
    """

    max_batch_size: int = 1
    join: bool = True
    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    queue: QueuePolicy = QueuePolicy()
    levels: tuple[QueuePolicy, ...] = ()
    default_level: int = 1

    def level(self, priority: int) -> int:
        """The level, from 1, of a request that asks for `priority`; 0 asks for none."""
        if not self.levels:
            return 1
        return priority if 1 <= priority <= len(self.levels) else self.default_level

    def waiting(self, level: int) -> QueuePolicy:
        """How requests of a level wait."""
        return self.levels[level - 1] if self.levels else self.queue


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """A request in the queue.

    `taken`: rows that are in batches already. `alone`: it is a whole batch, of any size. `deadline_ns`: from then on it
    is not computed. `timeout_ns`: from then on it is behind others of its level; `delayed`: it is.
    """

    item: T
    rows: int
    shape: Hashable
    arrived_ns: int
    deadline_ns: int | None
    alone: bool = False
    level: int = 1
    timeout_ns: int | None = None
    delayed: bool = False
    taken: int = 0
    gone: bool = False

    @property
    def left(self) -> int:
        return self.rows - self.taken

    @property
    def rank(self) -> int:
        """Lower leaves first."""
        return 2 * self.level + self.delayed


@dataclass(frozen=True, slots=True)
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
    """As many requests of a level wait as may.

    Args:
        limit: how many that is.
        level: which level, where there are priorities; else 0.
    """

    def __init__(self, limit: int, level: int = 0) -> None:
        super().__init__(f"{limit} requests wait" + (f" at priority {level}" if level else ""))
        self.limit = limit
        self.level = level
