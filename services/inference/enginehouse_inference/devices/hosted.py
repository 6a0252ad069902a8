"""What a supervisor knows of an engine that its worker should hold, and when it loses patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.workers.link import LoadedModel


@dataclass(frozen=True)
class SupervisorSettings:
    """When a worker is taken for dead or beyond hope. Times in seconds."""

    ping_interval: float = 5.0
    ping_timeout: float = 30.0
    load_timeout: float = 1800.0
    inference_timeout: float = 300.0
    backoff_first: float = 0.1
    backoff_most: float = 30.0
    # A model that has crashed its worker this often within the window is not loaded again.
    crash_limit: int = 3
    crash_window: float = 600.0
    start_attempts: int = 3
    reload_interval: float = 30.0


@dataclass(eq=False)
class Hosted:
    """An engine that the worker should hold."""

    key: str
    directory: Path
    instances: int
    warmup: Sequence[int]
    options: dict[str, str]
    changed: Callable[[], None]
    first: asyncio.Future[LoadedModel]
    loading: bool = False
    ready: bool = False
    reason: str = "the worker is starting"
    failed: bool = False
    # When it crashed the worker, and how much of the blame it bears (others ran at the same time).
    crashes: list[tuple[float, float]] = field(default_factory=list)

    def blame(self, now: float, window: float) -> float:
        self.crashes = [c for c in self.crashes if c[0] > now - window]
        return sum(share for _, share in self.crashes)
