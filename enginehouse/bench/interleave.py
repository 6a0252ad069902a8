"""Measuring several lanes in turn, so that what disturbs the machine disturbs all of them and their ratios hold."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from enginehouse.bench.statistics import WINDOWS_OF_A_RESULT, Window, settled, warm
from enginehouse.bench.suite import MeasureSpec
from enginehouse.errors import EnginehouseError

T = TypeVar("T", bound=Hashable)


@dataclass
class Outcome(Generic[T]):
    """What became of one lane: its windows, and the error that ended it, if one did."""

    lane: T
    windows: list[Window] = field(default_factory=list)
    error: EnginehouseError | None = None

    @property
    def last_windows(self) -> list[Window]:
        return self.windows[-WINDOWS_OF_A_RESULT:]


async def interleave(
    lanes: Sequence[T],
    measure: Callable[[T, int], Awaitable[Window]],
    spec: MeasureSpec,
    on_window: Callable[[T, int, Window], None],
    *,
    seed: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome[T]]:
    """Measure one window of each lane in turn until each has settled, or has had `max_windows` or `max_seconds`.

    Args:
        measure: measures window `index` of a lane. Its `EnginehouseError` ends that lane only.
        on_window: told of every window.
        seed: of the order within each turn, where the suite wants it random: no lane always follows the same other, so
            that heat and clocks that one leaves behind do not fall on one neighbour.
        clock: seconds, for `max_seconds`, which counts a lane's own windows only.

    Returns:
        an outcome for each lane, in the order given.
    """
    outcomes = [Outcome(lane) for lane in lanes]
    spent = [0.0] * len(outcomes)
    running = list(range(len(outcomes)))
    shuffle = random.Random(seed).shuffle if spec.order == "random" else lambda turn: None
    while running:
        turn = list(running)
        shuffle(turn)
        for number in turn:
            outcome, begun = outcomes[number], clock()
            try:
                window = await measure(outcome.lane, len(outcome.windows))
            except EnginehouseError as error:
                outcome.error = error
                running.remove(number)
                continue
            spent[number] += clock() - begun
            outcome.windows.append(window)
            on_window(outcome.lane, len(outcome.windows), window)
            if (
                settled(outcome.windows, spec.agreement)
                or len(outcome.windows) >= spec.max_windows
                or spent[number] >= spec.max_seconds
            ):
                running.remove(number)
    return outcomes


async def warm_up(
    window: Callable[[], Awaitable[Window]], spec: MeasureSpec, clock: Callable[[], float] = time.monotonic
) -> float:
    """Run windows until three in a row agree within the suite's agreement: after `warmup_seconds` at the earliest,
    after `warmup_max_seconds` in any case; none when `warmup_seconds` is 0.

    Returns:
        how long it took, seconds.
    """
    if spec.warmup_seconds <= 0:
        return 0.0
    begun, windows = clock(), list[Window]()
    while True:
        windows.append(await window())
        took = clock() - begun
        if took >= spec.warmup_max_seconds or (took >= spec.warmup_seconds and warm(windows, spec.agreement)):
            return took
