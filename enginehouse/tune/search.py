"""Which configuration to try next. No I/O, no clock: a generator that is told what each point measured."""

from __future__ import annotations

from collections.abc import Generator

from enginehouse.tune.goal import Goal, Trial
from enginehouse.tune.space import AXES, Point, Space

# An engine that was worse than the best by more than this factor is not tried again with other settings.
HOPELESS = 2.0

Search = Generator[Point, Trial, Trial]


class CoordinateSearch:
    """Searches one axis after the other, and again until no axis brings anything.

    Engines are all tried; along the other axes it goes from the best point so far towards what is better, and stops at
    the first value that is not. Each point is asked for once. It ends at a point that no neighbour on any axis betters
    (hopeless engines aside); for a measure that rises and falls along each axis whatever the others are, that is the
    best of all.

    Args:
        tolerance: a fraction; a step that brings less may be noise and is not taken.
    """

    def __init__(self, space: Space, goal: Goal, tolerance: float = 0.0) -> None:
        self._space, self._goal, self._tolerance = space, goal, tolerance
        self._known: dict[Point, Trial] = {}

    def run(self) -> Search:
        """Yields points to measure and is sent their trials; returns the best."""
        best = yield from self._look(self._space.start())
        while True:
            before = best.point
            for axis in AXES:
                best = yield from (self._engines(best) if axis == "engine" else self._line(axis, best))
            if best.point == before:
                return best

    def _look(self, point: Point) -> Search:
        if point not in self._known:
            self._known[point] = yield point
        return self._known[point]

    def _engines(self, best: Trial) -> Search:
        for point in self._space.along(best.point, "engine"):
            if not self._hopeless(point.engine, best):
                trial = yield from self._look(point)
                best = self._better(trial, best)
        return best

    def _line(self, axis: str, best: Trial) -> Search:
        points = self._space.along(best.point, axis)
        start = points.index(best.point)
        for direction in (1, -1):
            place = start + direction
            while 0 <= place < len(points):
                trial = yield from self._look(points[place])
                if self._better(trial, best) is best:
                    break
                best = trial
                place += direction
        return best

    def _better(self, trial: Trial, best: Trial) -> Trial:
        return trial if self._goal.better(trial, best, self._tolerance) else best

    def _hopeless(self, engine: str, best: Trial) -> bool:
        tried = [self._goal.score(trial) for point, trial in self._known.items() if point.engine == engine]
        if not tried or engine == best.point.engine:
            return False
        kind, value = max(tried)
        best_kind, best_value = self._goal.score(best)
        return kind == 0 or (kind == best_kind and value * HOPELESS < best_value)
