"""Which waiting stage starts next: the most urgent one that has a slot and for which there is memory.

A stage that waits for a slot lets others pass that do not need it. A stage that waits for memory lets none pass: small
stages would otherwise take what becomes free for ever. A stage that would run alone starts whatever it is expected to
take, so that nothing waits for memory that will never be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from enginehouse.workers.memory import available_memory_bytes, group_memory_bytes

# Other processes take and give memory without telling us.
LOOK_AGAIN_SECONDS = 1.0

# Smaller is more urgent: (-priority, the job's number).
Urgency = tuple[int, int]

_log = structlog.get_logger("stages")


@dataclass(frozen=True)
class StageSlots:
    """How many stages run at once.

    In all, in each environment (by default, and for named ones) and of a kind, such as "convert" (without limit when
    not named). `memory_bytes` is what all may take together; 0: what the machine or container has.
    """

    total: int = 2
    per_environment: int = 1
    environments: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True)
class Demand:
    """What a stage needs to start; `memory_bytes` is the peak that is expected of it."""

    stage: str
    environment: str
    memory_bytes: int = 0


@dataclass(eq=False)
class Holding:
    """A stage that runs, or is about to; its process group is told once it is there."""

    demand: Demand
    group: int | None = None


@dataclass(eq=False)
class _Waiter:
    holding: Holding
    urgency: Callable[[], Urgency]
    tell: Callable[[str], None]
    arrival: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class StageQueue:
    """Stages that wait and stages that run. All methods in one event loop.

    Args:
        available: bytes that processes can still take, None when unknown; of this machine by default.
        used: resident bytes of a process group.
    """

    def __init__(
        self,
        slots: StageSlots,
        available: Callable[[], int | None] = available_memory_bytes,
        used: Callable[[int], int] = group_memory_bytes,
    ) -> None:
        self._slots = slots
        self._available = available
        self._used = used
        self._waiting: list[_Waiter] = []
        self._running: list[Holding] = []
        self._arrivals = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def hold(
        self, demand: Demand, urgency: Callable[[], Urgency], tell: Callable[[str], None] = lambda message: None
    ) -> AsyncIterator[Holding]:
        """Wait until the stage may start; what it holds is given back at the end.

        Args:
            urgency: asked whenever something may start, for it may rise.
            tell: told once why the stage waits, when it is memory.
        """
        self._arrivals += 1
        waiter = _Waiter(Holding(demand), urgency, tell, self._arrivals)
        self._waiting.append(waiter)
        try:
            self._admit()
            await waiter.admitted.wait()
            yield waiter.holding
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._running.remove(waiter.holding)
            self._admit()

    def _admit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in sorted(self._waiting, key=lambda waiter: (waiter.urgency(), waiter.arrival)):
            if len(self._running) >= self._slots.total:
                return
            if not self._has_slot(waiter.holding.demand):
                continue
            if (short := self._short_of_memory(waiter.holding.demand)) is not None:
                tell, waiter.tell = waiter.tell, lambda message: None
                tell(short)
                self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, self._admit)
                return
            self._waiting.remove(waiter)
            self._running.append(waiter.holding)
            waiter.admitted.set()

    def _has_slot(self, demand: Demand) -> bool:
        slots = self._slots
        running = [holding.demand for holding in self._running]
        in_environment = sum(other.environment == demand.environment for other in running)
        if in_environment >= slots.environments.get(demand.environment, slots.per_environment):
            return False
        most = slots.stages.get(demand.stage)
        return most is None or sum(other.stage == demand.stage for other in running) < most

    def _short_of_memory(self, demand: Demand) -> str | None:
        """Why the stage cannot start beside those that run; None when it can."""
        if not self._running:
            return None
        used = [0 if holding.group is None else self._used(holding.group) for holding in self._running]
        peaks = [max(now, holding.demand.memory_bytes) for now, holding in zip(used, self._running, strict=True)]
        free = self._available()
        # What runs will still grow to its peak.
        left = [] if free is None else [free - (sum(peaks) - sum(used))]
        if self._slots.memory_bytes:
            left.append(self._slots.memory_bytes - sum(peaks))
        if not left or demand.memory_bytes <= min(left):
            return None
        short = f"waits for memory: expected to take {_gib(demand.memory_bytes)}, {_gib(max(0, min(left)))} are free"
        _log.info("stage waits for memory", stage=demand.stage, expected=demand.memory_bytes, free=min(left))
        return short


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
