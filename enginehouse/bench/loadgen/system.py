"""The system under test: LoadGen's queries, put into batches for an engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from enginehouse.errors import EnginehouseError


class Target(Protocol):
    """What answers: an engine in a worker, or the inference service."""

    async def infer(self, indices: Sequence[int]) -> None:
        """One batch of the library's samples, to its answer."""


class SystemUnderTest:
    """Takes samples from LoadGen's threads and runs them on an event loop, at most `max_batch` at once.

    Whenever one of `in_flight` places is free, all that waits goes as one batch, up to `max_batch`: no sample waits for
    company. The first error ends the work: what is left is answered unanswered, since LoadGen cannot be stopped, and
    `error` has it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        complete: Callable[[Sequence[int]], None],
        *,
        max_batch: int,
        in_flight: int,
    ) -> None:
        self._loop, self._target, self._complete = loop, target, complete
        self._max_batch, self._free = max_batch, in_flight
        self._waiting: deque[tuple[int, int]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self.error: EnginehouseError | None = None
        self.batches = self.samples = 0

    def issue(self, query: Sequence[Any]) -> None:
        """Called by LoadGen, on any thread: samples with `id` and `index`."""
        samples = [(sample.id, sample.index) for sample in query]
        if self._ended:  # perhaps with the loop; LoadGen goes on until its time is up
            self._complete([identifier for identifier, _ in samples])
        else:
            self._loop.call_soon_threadsafe(self._accept, samples)

    def flush(self) -> None:
        """Called by LoadGen when it has issued all; nothing waits for company here."""

    def stop(self) -> None:
        """Answer the rest without running it."""
        self._ended = True
        self._pump()

    def _accept(self, samples: Sequence[tuple[int, int]]) -> None:
        self._waiting.extend(samples)
        self._pump()

    def _pump(self) -> None:
        if self._ended and self._waiting:
            left = [identifier for identifier, _ in self._waiting]
            self._waiting.clear()
            self._complete(left)
        while self._free and self._waiting:
            count = min(self._max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._free -= 1
            task = self._loop.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: Sequence[tuple[int, int]]) -> None:
        try:
            await self._target.infer([index for _, index in batch])
            self.batches += 1
            self.samples += len(batch)
        except EnginehouseError as error:
            self.error, self._ended = self.error or error, True
        finally:
            self._free += 1
            self._complete([identifier for identifier, _ in batch])
            self._pump()
