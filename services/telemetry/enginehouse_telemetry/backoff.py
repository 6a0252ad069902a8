"""When to try again what failed: soon, then ever more rarely."""

from __future__ import annotations

import time
from collections.abc import Callable


class Backoff:
    """Doubling waits, from `first` to `last` seconds."""

    def __init__(self, first: float, last: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._last, self._clock = first, last, clock
        self._wait = first
        self._due = clock()
        self.failures = 0

    @property
    def due(self) -> bool:
        """Whether the next try may be made."""
        return self._clock() >= self._due

    def failed(self) -> None:
        """A try failed (or the thing broke): wait before the next."""
        self.failures += 1
        self._due = self._clock() + self._wait
        self._wait = min(self._wait * 2, self._last)

    def succeeded(self) -> None:
        """It works again: the next failure begins with the first wait."""
        self.failures = 0
        self._wait = self._first
        self._due = self._clock()
