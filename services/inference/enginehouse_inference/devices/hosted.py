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


def convict(suspects: Sequence[Hosted], now: float, settings: SupervisorSettings) -> Hosted | None:
    """Note a crash at `now` with those that ran, and return the one that is to blame for too many; None while none is.

    Those that ran share the blame. Only one is convicted at a time: of those over the limit the one that bears most, of
    equals the one that came last. The crashes that it explains are then forgotten for the others.
    """
    for hosted in suspects:
        hosted.crashes.append((now, 1 / len(suspects)))
    blame = [round(hosted.blame(now, settings.crash_window), 6) for hosted in suspects]
    worst = max(range(len(suspects)), key=lambda index: (blame[index], index), default=None)
    if worst is None or blame[worst] < settings.crash_limit - 1e-3:
        return None
    culprit = suspects[worst]
    explained = {time for time, _ in culprit.crashes}
    for hosted in suspects:
        if hosted is not culprit:
            hosted.crashes = [crash for crash in hosted.crashes if crash[0] not in explained]
    return culprit
