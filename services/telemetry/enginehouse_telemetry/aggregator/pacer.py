"""Reads less often when the process does not keep up: samples are skipped at their agents, and do not grow old here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

# How often the event loop is timed, and how late it may be: above BUSY we read less, below CALM more again.
TICK, BUSY, CALM = 0.1, 0.25, 0.05
# How much a single time counts: a hiccup is no overload.
WEIGHT = 0.3
# The pause that overload begins with, and the longest, in intervals.
FIRST, LONGEST = 0.25, 4.0

_log = structlog.get_logger("pacer")


class Pacer:
    """How long each stream waits between two reads: nothing as long as the event loop is on time.

    Args:
        interval: seconds between an agent's samples.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = interval, clock
        self.pause = 0.0
        self._late = 0.0

    async def run(self) -> None:
        """Time the event loop until cancelled."""
        while True:
            began = self._clock()
            await asyncio.sleep(TICK)
            self.observe(self._clock() - began - TICK)

    def observe(self, late: float) -> None:
        """The event loop was late by so many seconds."""
        before = self.pause
        self._late += WEIGHT * (late - self._late)
        if self._late > BUSY:
            self.pause = min(max(self.pause * 1.5, FIRST * self._interval), LONGEST * self._interval)
        elif self._late < CALM:
            self.pause = self.pause * 0.95 if self.pause > FIRST * self._interval / 4 else 0.0
        if bool(before) is not bool(self.pause):
            _log.warning(
                "too many samples for this machine: reading fewer" if self.pause else "reading all samples again"
            )
