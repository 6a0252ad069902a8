"""The ring buffer: samples of the last seconds, within a limit of bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A sample as it is kept: serialized, which takes a fraction of the memory of the message.

    Attributes:
        sequence: rises by 1 from one to the next.
        time_ns: Unix time in nanoseconds.
        monotonic: seconds of the monotonic clock.
    """

    sequence: int
    time_ns: int
    monotonic: float
    data: bytes


class History:
    """Keeps samples for `seconds`, fewer when they come to more than `max_bytes`; the newest is always kept."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._kept: deque[Kept] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def newest_sequence(self) -> int:
        """0 when there is none."""
        return self._kept[-1].sequence if self._kept else 0

    def append(self, kept: Kept) -> None:
        self._kept.append(kept)
        self._bytes += len(kept.data)
        # By the monotonic clock: a wall clock set forward would empty the buffer.
        while len(self._kept) > 1 and (
            kept.monotonic - self._kept[0].monotonic > self._seconds or self._bytes > self._max_bytes
        ):
            self._bytes -= len(self._kept.popleft().data)

    def between(self, first: int, last: int, start_ns: int | None, end_ns: int | None) -> list[Kept]:
        """Samples with a sequence from `first` to `last`, both included, and a time in [start, end); oldest first."""
        return [
            kept
            for kept in self._kept
            if first <= kept.sequence <= last
            and (start_ns is None or kept.time_ns >= start_ns)
            and (end_ns is None or kept.time_ns < end_ns)
        ]
