"""The sampler: one thread that reads the node at the wanted period. The event loop never waits for NVML."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from enginehouse_telemetry.pace import next_due
from enginehouse_telemetry.readings import NodeReading

_log = structlog.get_logger("sampler")


class NodeSource(Protocol):
    """Reads a node; only the sampler's thread calls it."""

    def read(self) -> NodeReading: ...

    def close(self) -> None: ...


class Sampler:
    """Reads `source` every period and hands each reading to `deliver`, in its own thread.

    A daemon thread: a driver call that never returns must not keep the process from ending.
    """

    def __init__(self, source: NodeSource, deliver: Callable[[NodeReading], None], period: float) -> None:
        self._source, self._deliver, self._period = source, deliver, period
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.missed = 0

    def start(self) -> None:
        self._thread.start()

    def set_period(self, period: float) -> None:
        """Read every `period` seconds from now on."""
        with self._changed:
            self._period = period
            self._changed.notify()

    def close(self, timeout: float = 2.0) -> bool:
        """Stop and release the source; False when a reading still runs after `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = self._wait(time.monotonic())
        while due is not None:
            try:
                self._deliver(self._source.read())
            except Exception:
                # Whatever a driver answers, the next sample may be good.
                _log.exception("a sample could not be taken")
            following, missed = next_due(due, time.monotonic(), self._period)
            self.missed += missed
            due = self._wait(following)
        self._source.close()

    def _wait(self, due: float) -> float | None:
        """Wait until a sample is due and return when it was; None when closed instead."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due = min(due, now + self._period)  # a period that became shorter brings it forward
                if due <= now:
                    return due
                self._changed.wait(due - now)
            return None
