"""A running service as a search sees it: configurations are served under a name of their own and measured."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.client import AsyncClient
from enginehouse.client.values import Batching, ServingConfig
from enginehouse.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from enginehouse.names import check_id
from enginehouse.tune.goal import Goal, Level, Trial
from enginehouse.tune.levels import go_on
from enginehouse.tune.load import Window, closed_loop, offered
from enginehouse.tune.space import Point

SUFFIX = "-tuning"
WINDOW = Window()
WARM_UP = Window(0.3, 10, 5.0)
CONFIRMATION = 3.0
# A request that takes this many times the limit is a failure, and no reason to wait longer.
LATE = 20.0
LEAST_TIMEOUT = 5.0
LONGEST_TIMEOUT = 60.0

Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Load:
    """What each configuration is measured under: rising numbers of requests in flight, or one offered rate."""

    inputs: Inputs
    rows: int
    concurrency: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    rate: float | None = None
    window: Window = WINDOW


class LiveService:
    """Serves points under the name "{model}-tuning", beside what the model's clients use, and takes it away at the end.

    Use it in an `async with` block. A client that sends nothing again belongs to it: a refusal must be seen.

    Args:
        base: what is kept of the present configuration: options, queues, priorities.
        goal: says when a higher load is not worth measuring.
    """

    def __init__(
        self, client: AsyncClient, model_name: str, base: ServingConfig | None, load: Load, goal: Goal, seconds: float
    ) -> None:
        self.name = check_id(f"{model_name}{SUFFIX}", "model name")
        self._client, self._base, self._load, self._goal = client, base, load, goal
        self._load_seconds = seconds
        limit = LATE * goal.p99_ms / 1e3 if goal.p99_ms else LONGEST_TIMEOUT
        self._timeout = min(LONGEST_TIMEOUT, max(LEAST_TIMEOUT, limit))

    async def __aenter__(self) -> LiveService:
        """Check that nobody has the name.

        Raises:
            AlreadyExistsError: it is served.
        """
        try:
            await self._client.serving.get(self.name)
        except NotFoundError:
            return self
        raise AlreadyExistsError(
            f"{self.name} is served already: another tuning runs, or one was killed. When none runs, "
            f"`enginehouse unload {self.name}` takes it away"
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also when we are interrupted, and even twice: nothing of ours stays.
        await asyncio.shield(asyncio.ensure_future(self._leave()))

    async def measure(self, point: Point) -> Trial:
        """Serve a point and measure it under rising load."""
        return await self._trial(point, None)

    async def confirm(self, point: Point, level: Level) -> Trial:
        """Serve a point again and measure one load for longer."""
        return await self._trial(point, level)

    async def _trial(self, point: Point, only: Level | None) -> Trial:
        again = only is not None
        try:
            version = await self._serve(point)
        except (
            FailedPreconditionError,
            InvalidArgumentError,
            ResourceExhaustedError,
            DeadlineExceededError,
        ) as error:
            return Trial(point, error=error.message, confirmation=again)
        call = self._call(version)
        # The first requests of a version pay for what is made once.
        await closed_loop(call, concurrency=min(4, self._load.concurrency[-1]), rows=self._load.rows, window=WARM_UP)
        if only is not None:
            level = await self._level(call, only.concurrency, self._load.window.longer(CONFIRMATION))
            return Trial(point, (level,), confirmation=True)
        levels: list[Level] = []
        for concurrency in (None,) if self._load.rate else self._load.concurrency:
            if not go_on(self._goal, levels):
                break
            levels.append(await self._level(call, concurrency, self._load.window))
        return Trial(point, tuple(levels))

    async def _serve(self, point: Point) -> int:
        config = await self._client.load(
            self.name,
            point.engine,
            instances=point.instances,
            batching=self.batching(point),
            options=dict(self._base.options) if self._base else None,
            warmup_batch_sizes=self._base.warmup_batch_sizes if self._base else None,
            timeout=self._load_seconds,
        )
        newest = config.newest
        assert newest is not None
        return newest.version

    def batching(self, point: Point, *, trial: bool = True) -> Batching:
        """How a point's requests wait. In a trial without the cache: the same request again would measure that."""
        base = self._base.batching if self._base else Batching()
        return dataclasses.replace(
            base,
            max_batch_size=point.max_batch_size,
            max_queue_delay_seconds=point.delay_ms / 1e3,
            preferred_batch_sizes=tuple(n for n in base.preferred_batch_sizes if n <= point.max_batch_size),
            response_cache_bytes=0 if trial else base.response_cache_bytes,
        )

    def _call(self, version: int) -> Any:
        inputs = {name: np.ascontiguousarray(array) for name, array in self._load.inputs.items()}

        async def call() -> None:
            await self._client.infer(self.name, inputs, version=version, timeout=self._timeout, casting="same_kind")

        return call

    async def _level(self, call: Any, concurrency: int | None, window: Window) -> Level:
        if concurrency is None:
            assert self._load.rate is not None
            return await offered(call, rate=self._load.rate, rows=self._load.rows, window=window)
        return await closed_loop(call, concurrency=concurrency, rows=self._load.rows, window=window)

    async def _leave(self) -> None:
        try:
            await self._client.unload(self.name)
        except NotFoundError:
            return  # no trial came so far
        except EnginehouseError as error:
            raise type(error)(
                f"{self.name} could not be taken away, `enginehouse unload {self.name}` will: {error.message}"
            ) from error
