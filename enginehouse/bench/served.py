"""The served scope: a closed loop of clients over gRPC through the inference service."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from enginehouse.bench.environment import Environment, Machine, speed_settings, worker_pids
from enginehouse.bench.inputs import random_inputs
from enginehouse.bench.interleave import interleave, warm_up
from enginehouse.bench.plan import Contender
from enginehouse.bench.recording import Measured, Recording, utc
from enginehouse.bench.rows import Lane
from enginehouse.bench.seams import Engine, Serving
from enginehouse.bench.statistics import Window
from enginehouse.errors import EnginehouseError, FailedPreconditionError


async def closed_loop(call: Callable[[], Awaitable[None]], *, concurrency: int, seconds: float, batch: int) -> Window:
    """Keep `concurrency` calls in flight for `seconds`, one a client at least; each client sends its next when its
    last was answered.

    Latency is from sending to the answer. The window ends with the last answer, so calls begun in time count in full.

    Raises:
        EnginehouseError: a call failed; the others are cancelled.
    """
    latencies: list[int] = []
    started, begun = time.time(), time.perf_counter_ns()
    deadline = begun + round(seconds * 1e9)

    async def client() -> None:
        sent = begun
        while sent < deadline or sent == begun:  # at least once
            await call()
            answered = time.perf_counter_ns()
            latencies.append(answered - sent)
            sent = answered

    clients = [asyncio.ensure_future(client()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*clients)
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    wall = time.perf_counter_ns() - begun
    return Window(tuple(latencies), wall, len(latencies) * batch, None, started, time.time())


@dataclass(frozen=True)
class Servable:
    """A contender's engine and the name it is served under."""

    contender: Contender
    engine: Engine
    name: str


class ServedBench:
    """Measures the contenders of one model through the inference service, which serves all of them meanwhile."""

    def __init__(self, serving: Serving, recording: Recording, machine: Machine) -> None:
        self._serving, self._recording, self._machine = serving, recording, machine

    async def run(self, model: str, servables: Sequence[Servable], wanted: Mapping[Contender, Sequence[Lane]]) -> None:
        """Publish every engine, measure the wanted lanes interleaved, withdraw the engines."""
        published: list[Servable] = []
        try:
            with self._recording.phase(f"publish {model}", "load", model=model):
                for servable in servables:
                    if await self._publish(servable, wanted.get(servable.contender, ())):
                        published.append(servable)
            software = await self._software(published, wanted)
            if software is None:
                return
            groups = sorted({(lane.batch, lane.concurrency) for s in published for lane in wanted.get(s.contender, ())})
            for batch, concurrency in groups:
                lanes = {
                    lane: servable
                    for servable in published
                    for lane in wanted.get(servable.contender, ())
                    if (lane.batch, lane.concurrency) == (batch, concurrency)
                }
                await self._round(model, batch, concurrency, lanes, software)
        finally:
            for servable in published:
                await self._withdraw(servable)

    async def _round(
        self, model: str, batch: int, concurrency: int, lanes: Mapping[Lane, Servable], software: Mapping[str, str]
    ) -> None:
        spec = self._recording.suite.measure
        round_id = f"{utc()}/{model}/served/{batch}/{concurrency}"
        facts: dict[str, str | int] = {"model": model, "batch": batch, "scope": "served", "concurrency": concurrency}
        calls: dict[Lane, Callable[[], Awaitable[None]]] = {}
        warmed: dict[Lane, float] = {}

        async def window(call: Callable[[], Awaitable[None]]) -> Window:
            return await closed_loop(call, concurrency=concurrency, seconds=spec.window_seconds, batch=batch)

        name = f"{model} served batch {batch} concurrency {concurrency}"
        with self._recording.phase(f"warm up {name}", "warm-up", **facts):
            for lane, servable in lanes.items():
                try:
                    call = self._call(servable, batch)
                    warmed[lane] = await warm_up(functools.partial(window, call), spec)
                    calls[lane] = call
                except EnginehouseError as error:
                    self._recording.not_run([lane], error)
        with self._recording.phase(f"measure {name}", "measure", **facts):
            outcomes = await interleave(
                list(calls),
                lambda lane, index: window(calls[lane]),
                spec,
                lambda lane, index, found: self._recording.window(lane, round_id, index, found),
                seed=f"{self._recording.suite.seed}/{round_id.partition('/')[2]}",
            )
        environment = Environment(self._machine, dict(software), "service", speed_settings())
        own = await asyncio.to_thread(worker_pids)
        measured = {lane: Measured(lanes[lane].engine, environment, warmed[lane], own=own) for lane in calls}
        self._recording.rows(outcomes, measured, round_id)

    def _call(self, servable: Servable, batch: int) -> Callable[[], Awaitable[None]]:
        if 0 < servable.engine.max_batch_size < batch:
            raise FailedPreconditionError(f"the engine takes at most batch {servable.engine.max_batch_size}")
        inputs: dict[str, npt.NDArray[Any]] = random_inputs(servable.engine.inputs, batch, self._recording.suite.seed)
        return lambda: self._serving.infer(servable.name, inputs)

    async def _publish(self, servable: Servable, lanes: Sequence[Lane]) -> bool:
        try:
            await self._serving.publish(
                servable.name,
                servable.engine,
                instances=self._recording.suite.instances,
                options=servable.contender.mode.load_options,
            )
        except EnginehouseError as error:
            self._recording.not_run(lanes, error)
            await self._withdraw(servable)
            return False
        return True

    async def _software(
        self, published: Sequence[Servable], wanted: Mapping[Contender, Sequence[Lane]]
    ) -> Mapping[str, str] | None:
        try:
            return await self._serving.software() if published else None
        except EnginehouseError as error:
            for servable in published:
                self._recording.not_run(wanted.get(servable.contender, ()), error)
            return None

    async def _withdraw(self, servable: Servable) -> None:
        try:
            await self._serving.withdraw(servable.name)
        except EnginehouseError:
            return  # not there, or the service is gone: nothing of ours is left to take back
