"""How long each call takes: what decides which questions 100 ms sampling can afford."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class _Tally:
    count: int = 0
    total: float = 0.0
    worst: float = 0.0


class Timings:
    """Seconds by name. Several threads may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[str, _Tally] = {}

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            tally = self._tallies.setdefault(name, _Tally())
            tally.count += 1
            tally.total += seconds
            tally.worst = max(tally.worst, seconds)

    def table(self) -> list[tuple[str, int, float, float]]:
        """Name, calls, mean and worst milliseconds; the slowest first."""
        with self._lock:
            rows = [(name, t.count, t.total / t.count * 1e3, t.worst * 1e3) for name, t in self._tallies.items()]
        return sorted(rows, key=lambda row: -row[2])
