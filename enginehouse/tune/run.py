"""A search against a service within a budget of time, then a second, longer look at the best that it found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from enginehouse.errors import InvalidArgumentError
from enginehouse.tune.goal import Goal, Level, Trial
from enginehouse.tune.search import CoordinateSearch
from enginehouse.tune.space import Point, Space

# Throughput of one configuration differs from window to window by about so much.
TOLERANCE = 0.03
# What is left of the budget is for measuring the best again.
SEARCH_SHARE = 0.75
FINALISTS = 3


class Service(Protocol):
    """What a search needs of a service."""

    async def measure(self, point: Point) -> Trial:
        """Serve a configuration and measure it under rising load. What goes wrong is in the trial."""

    async def confirm(self, point: Point, level: Level) -> Trial:
        """Serve it again and measure one load for longer."""


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the best configuration that does; None when none did.
        confirmed: whether the second look at it said so too.
        trials: all that were measured, in order.
        complete: the search came to its end before the time did.
        seconds: that it took.
    """

    best: Trial | None
    confirmed: bool
    trials: tuple[Trial, ...]
    complete: bool
    seconds: float


async def tune(
    service: Service,
    space: Space,
    goal: Goal,
    budget: float,
    *,
    tolerance: float = TOLERANCE,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> Outcome:
    """Search a space for at most `budget` seconds.

    No trial is begun that would not end in time if it took as long as the longest so far, and one that does not end is
    given up. The best few are measured once more, for longer: of many noisy measurements the highest flatters, and only
    what does both times is returned as confirmed.

    Raises:
        InvalidArgumentError: there is no time to search in.
    """
    if not budget > 0:
        raise InvalidArgumentError(f"the budget is {budget:g} s: expected more than 0")
    tuning = _Tuning(service, goal, clock, clock() + budget, tell)
    started = clock()
    complete = await tuning.search(space, tolerance, started + SEARCH_SHARE * budget)
    best, confirmed = await tuning.choose()
    return Outcome(best, confirmed, tuple(tuning.trials), complete, clock() - started)


class _Tuning:
    def __init__(
        self,
        service: Service,
        goal: Goal,
        clock: Callable[[], float],
        deadline: float,
        tell: Callable[[Trial], None],
    ) -> None:
        self._service, self._goal, self._clock, self._deadline, self._tell = service, goal, clock, deadline, tell
        self.trials: list[Trial] = []
        self._longest = 0.0

    async def search(self, space: Space, tolerance: float, until: float) -> bool:
        """Measure point after point; whether the search ended by itself."""
        search = CoordinateSearch(space, self._goal, tolerance).run()
        point = next(search)
        while self._clock() + self._longest <= until:
            trial = await self._in_time(self._service.measure(point))
            if trial is None:
                return False
            try:
                point = search.send(trial)
            except StopIteration:
                return True
        return False

    async def choose(self) -> tuple[Trial | None, bool]:
        """The best that does, and whether it did so twice."""
        found = [trial for trial in self.trials if self._goal.feasible(trial)]
        ranking = sorted(found, key=self._goal.score, reverse=True)
        confirmed: list[Trial] = []
        looked = 0
        for trial in ranking:
            level = self._goal.best_level(trial)
            if level is None or len(confirmed) >= FINALISTS or self._clock() + self._longest > self._deadline:
                break
            again = await self._in_time(self._service.confirm(trial.point, level))
            if again is None:
                break
            looked += 1
            if self._goal.feasible(again):
                confirmed.append(again)
        if confirmed:
            return max(confirmed, key=self._goal.score), True
        # Those that were looked at again did not do; the next might.
        return (ranking[looked], False) if looked < len(ranking) else (None, False)

    async def _in_time(self, measuring: Awaitable[Trial]) -> Trial | None:
        """A trial, kept and told; None when the budget ended first."""
        started = self._clock()
        try:
            trial = await asyncio.wait_for(measuring, max(0.0, self._deadline - started))
        except asyncio.TimeoutError:
            return None
        self._longest = max(self._longest, self._clock() - started)
        self.trials.append(trial)
        self._tell(trial)
        return trial
