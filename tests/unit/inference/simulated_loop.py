"""An event loop whose clock jumps: what would wait for time gets it at once, so that a test of minutes takes none."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Never blocks: time passes instead. A wait for ever would be a deadlock, and raises."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None and not (ready := super().select(0)):
            raise RuntimeError("everything waits, and nothing will ever happen")
        elif timeout is None:
            return ready
        if timeout > 0:
            self.now += timeout
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time in seconds, from 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def time_ns(self) -> int:
        return round(self._jumping.now * 1e9)


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in simulated time."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def now_ns() -> int:
    """The simulated time in nanoseconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return loop.time_ns()
