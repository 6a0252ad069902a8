"""The search on simulated services: it finds what is best, returns nothing that does not do, and ends in time."""

from __future__ import annotations

import asyncio
import itertools
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_service import SimulatedService

from enginehouse.errors import InvalidArgumentError
from enginehouse.tune.goal import Goal, Trial
from enginehouse.tune.run import Outcome, tune
from enginehouse.tune.search import HOPELESS
from enginehouse.tune.space import AXES, Point, Space, batch_sizes

THROUGHPUT = Goal()


def every_point(space: Space) -> list[Point]:
    found = [
        space.canonical(Point(engine, batch, delay, count))
        for engine, batches in space.batches.items()
        for batch, delay, count in itertools.product(batches, space.delays_ms, space.instances)
    ]
    return list(dict.fromkeys(found))


def search(service: SimulatedService, space: Space, goal: Goal, budget: float = 1e6) -> Outcome:
    return asyncio.run(tune(service, space, goal, budget, tolerance=0.0, clock=service.clock))


def measured(space: Space, seed: int) -> dict[Point, tuple[float, float]]:
    """Some throughput and latency for each point."""
    random = Random(seed)
    return {point: (random.uniform(1, 5000), random.uniform(0.1, 40)) for point in every_point(space)}


rising = st.lists(st.integers(1, 256), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v)))


@st.composite
def spaces(draw: Any) -> Space:
    engines = draw(st.integers(1, 3))
    batches = {f"e{number}": draw(rising) for number in range(engines)}
    delays = (0.0, *map(float, draw(rising)))
    return Space(batches, delays, draw(rising))


@st.composite
def unimodal(draw: Any, values: tuple[float, ...]) -> dict[float, float]:
    """A factor for each value that rises to a peak and falls behind it."""
    peak = draw(st.integers(0, len(values) - 1))
    factors = draw(st.lists(st.floats(1.01, 3), min_size=len(values), max_size=len(values)))
    found = {values[peak]: 1.0}
    for side in (range(peak - 1, -1, -1), range(peak + 1, len(values))):
        height = 1.0
        for place in side:
            height /= factors[place]
            found[values[place]] = height
    return found


@given(data=st.data())
@settings(max_examples=40)
def test_it_finds_the_optimum_where_each_axis_has_one_peak(data: Any) -> None:
    space = data.draw(spaces())
    # Engines with batches of their own are no axis that is independent of the others: all have the same.
    sizes = next(iter(space.batches.values()))
    space = Space(dict.fromkeys(space.batches, sizes), space.delays_ms, space.instances)
    batch = {size: float(place + 1) for place, size in enumerate(sizes)}  # larger batches are faster
    delay = data.draw(unimodal(space.delays_ms))
    count = data.draw(unimodal(space.instances))
    engine = {name: data.draw(st.floats(1, 1.9)) for name in space.batches}

    def rate(point: Point) -> float:
        # Without joining the delay is nothing.
        waited = delay[point.delay_ms] if point.max_batch_size > 1 else delay[space.delays_ms[0]]
        return 1000 * engine[point.engine] * batch[point.max_batch_size] * waited * count[point.instances]

    service = SimulatedService(rate, lambda point: 1.0)
    outcome = search(service, space, THROUGHPUT)
    assert outcome.complete and outcome.confirmed and outcome.best is not None
    assert rate(outcome.best.point) == pytest.approx(max(map(rate, every_point(space))))


@given(data=st.data())
@settings(max_examples=40)
def test_what_it_returns_does_and_no_neighbour_is_better(data: Any) -> None:
    space = data.draw(spaces())
    goal = Goal(
        data.draw(st.sampled_from(["throughput", "latency"])),
        p99_ms=data.draw(st.floats(0.5, 20)),
        min_throughput=data.draw(st.sampled_from([0.0, 500.0])),
    )
    values = measured(space, data.draw(st.integers(0, 1000)))
    service = SimulatedService(lambda p: values[p][0], lambda p: values[p][1])
    outcome = search(service, space, goal)
    assert len(service.asked) == len(set(service.asked)) <= space.size, "each point once"
    assert set(service.asked) <= set(values)
    if outcome.best is None:
        assert not any(goal.feasible(service.truth(point)) for point in service.asked)
        return
    assert goal.feasible(outcome.best) and goal.feasible(service.truth(outcome.best.point))
    score = goal.score(outcome.best)
    for axis in AXES:
        points = list(space.along(outcome.best.point, axis))
        place = points.index(outcome.best.point)
        near = points if axis == "engine" else [*points[max(0, place - 1) : place], *points[place + 1 : place + 2]]
        for point in near:
            if point in service.asked:
                assert goal.score(service.truth(point)) <= score
            else:  # only engines that were far behind are left out
                assert axis == "engine"
                tried = max(goal.score(service.truth(p)) for p in service.asked if p.engine == point.engine)
                assert tried[0] == score[0] and tried[1] * HOPELESS < score[1]


@given(data=st.data())
@settings(max_examples=40)
def test_it_ends_in_its_budget_and_never_returns_what_was_refuted(data: Any) -> None:
    space = data.draw(spaces())
    goal = Goal(p99_ms=10.0)
    truth, lies = (measured(space, data.draw(st.integers(0, 1000))) for _ in range(2))
    service = SimulatedService(lambda p: truth[p][0], lambda p: truth[p][1], lambda p: 2.0, lies)
    budget = data.draw(st.floats(0.5, 60))
    outcome = search(service, space, goal, budget)
    # Trials all take 2 s: only the first, whose length nobody knew, may go over.
    assert service.now <= max(budget, 2.0)
    assert outcome.seconds == service.now
    if outcome.best is None:
        refuted = {p for p in service.confirmed if not goal.feasible(service.truth(p))}
        first_looks = [t for t in outcome.trials[: len(service.asked)] if goal.feasible(t)]
        assert {trial.point for trial in first_looks} <= refuted
    elif outcome.confirmed:
        assert goal.feasible(service.truth(outcome.best.point))
    else:
        assert goal.feasible(outcome.best) and outcome.best.point not in service.confirmed


def test_a_lucky_measurement_does_not_win() -> None:
    space = Space({"e": (1, 2, 4)}, (0.0,), (1, 2))
    lucky = Point("e", 4, 0.0, 2)  # seen once as twice as fast and in time, and neither is so
    service = SimulatedService(
        lambda p: 100.0 * p.max_batch_size,
        lambda p: 12.0 if p == lucky else 5.0,
        lies={lucky: (800.0, 5.0)},
    )
    outcome = search(service, space, Goal(p99_ms=10.0))
    assert outcome.confirmed and outcome.best is not None
    assert outcome.best.point == Point("e", 4, 0.0, 1) and outcome.best.levels[0].inferences_per_second == 400.0
    assert service.confirmed[0] == lucky


def test_a_trial_that_hangs_is_given_up() -> None:
    class Hanging(SimulatedService):
        async def measure(self, point: Point) -> Trial:
            if self.asked:
                await asyncio.Event().wait()
            return await super().measure(point)

    space = Space({"e": (1, 2, 4)}, (0.0,), (1,))
    service = Hanging(lambda p: 100.0, lambda p: 5.0, lambda p: 0.0)
    outcome = asyncio.run(tune(service, space, THROUGHPUT, 0.2))
    assert not outcome.complete
    # No time was left for a second look: what was found is returned as it is.
    assert outcome.best is not None and not outcome.confirmed


def test_engines_that_cannot_be_served_cost_one_look() -> None:
    class Broken(SimulatedService):
        async def measure(self, point: Point) -> Trial:
            trial = await super().measure(point)
            return Trial(point, error="did not load") if point.engine == "broken" else trial

    space = Space({"broken": (1, 2, 4, 8), "whole": (1, 2, 4, 8)}, (0.0, 1.0), (1, 2))
    service = Broken(lambda p: 100.0 * p.max_batch_size * p.instances, lambda p: 1.0)
    outcome = search(service, space, THROUGHPUT)
    assert outcome.best is not None and outcome.best.point == Point("whole", 8, 0.0, 2)
    assert [point.engine for point in service.asked].count("broken") == 1


def test_nothing_does() -> None:
    space = Space({"e": (1, 2, 4)}, (0.0,), (1,))
    outcome = search(SimulatedService(lambda p: 100.0, lambda p: 50.0 * p.max_batch_size), space, Goal(p99_ms=10.0))
    assert outcome.best is None and not outcome.confirmed and outcome.complete
    assert [trial.point.max_batch_size for trial in outcome.trials] == [4, 2, 1], "it went towards what comes nearer"
    with pytest.raises(InvalidArgumentError, match="budget"):
        search(SimulatedService(lambda p: 1.0, lambda p: 1.0), space, THROUGHPUT, 0.0)


def test_spaces() -> None:
    assert batch_sizes(0, 1) == (0,)
    assert batch_sizes(1, 1) == (1,)
    assert batch_sizes(24, 1) == (1, 2, 4, 8, 16, 24)
    assert batch_sizes(64, 16) == (16, 32, 64)
    assert batch_sizes(8, 100) == (8,)
    space = Space({"a": (1, 8), "b": (1, 2, 4), "c": (0,)}, (0.0, 5.0), (1, 2))
    assert space.size == len(every_point(space)) == 2 * (3 + 5 + 1)
    assert space.start() == Point("a", 8)
    assert list(space.along(Point("a", 8, 5.0), "engine")) == [
        Point("a", 8, 5.0),
        Point("b", 4, 5.0),
        Point("c", 0),
    ]
    assert list(space.along(Point("a", 1), "delay_ms")) == [Point("a", 1)], "a delay joins nothing"
    for wrong in ({}, {"a": ()}, {"a": (2, 1)}):
        with pytest.raises(InvalidArgumentError):
            Space(wrong)
