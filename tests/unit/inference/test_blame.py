"""Who is to blame for crashes: those that ran share it, and one is convicted at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from enginehouse_inference.devices.hosted import Hosted, SupervisorSettings, convict

SETTINGS = SupervisorSettings(crash_limit=3, crash_window=600)


def hosted(name: str) -> Hosted:
    return Hosted(name, Path(), 1, (), {}, lambda: None, asyncio.Future(loop=asyncio.new_event_loop()))


def test_one_that_ran_alone_is_convicted_at_the_limit() -> None:
    model = hosted("m")
    assert [convict([model], now, SETTINGS) for now in (1, 2, 3)] == [None, None, model]


def test_crashes_long_ago_are_forgotten() -> None:
    model = hosted("m")
    assert [convict([model], now, SETTINGS) for now in (1, 2, 700, 701)] == [None] * 4


def test_the_one_that_was_there_every_time_is_convicted_and_the_others_are_cleared() -> None:
    guilty, innocent = hosted("guilty"), hosted("innocent")
    # Together at first, then the guilty one by itself.
    runs = [[guilty, innocent], [innocent, guilty], [guilty], [guilty]]
    assert [convict(run, now, SETTINGS) for now, run in enumerate(runs)] == [None, None, None, guilty]
    convict([guilty, innocent], 10, SETTINGS)
    assert innocent.blame(11, SETTINGS.crash_window) <= 0.5


def test_of_two_that_always_ran_together_the_last_goes_first() -> None:
    first, last = hosted("first"), hosted("last")
    verdicts = [convict([first, last], now, SETTINGS) for now in range(6)]
    assert verdicts == [None] * 5 + [last]
    assert not first.crashes


def test_a_crash_of_nobody_convicts_nobody() -> None:
    assert convict([], 1, SETTINGS) is None
