"""The host scope: a worker process runs an engine back to back, host memory to host memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.bench.environment import Environment, Machine, speed_settings
from enginehouse.bench.interleave import interleave
from enginehouse.bench.plan import Contender
from enginehouse.bench.recording import Measured, Recording, utc
from enginehouse.bench.rows import Lane
from enginehouse.bench.seams import Engine, Worker, Workers
from enginehouse.bench.statistics import Window
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InternalError, UnavailableError


@dataclass(frozen=True)
class Loadable:
    """A contender's engine, downloaded."""

    contender: Contender
    engine: Engine
    directory: Path

    @property
    def key(self) -> str:
        return f"{self.contender.mode.name}@{self.contender.device}"


class HostBench:
    """Measures the contenders of one model. One worker process for each environment and device holds their engines."""

    def __init__(self, workers: Workers, recording: Recording, machine: Machine) -> None:
        self._workers, self._recording, self._machine = workers, recording, machine
        self._running: dict[tuple[str, str], Worker] = {}
        self._loaded: dict[str, Loadable] = {}
        self._environments: dict[str, Environment] = {}
        self._failed: dict[str, EnginehouseError] = {}

    async def run(self, model: str, loadables: Sequence[Loadable], wanted: Mapping[Contender, Sequence[Lane]]) -> None:
        """Load all engines, then measure the wanted lanes, one batch size after another, contenders interleaved."""
        try:
            with self._recording.phase(f"load {model}", "load", model=model):
                for loadable in loadables:
                    await self._load(loadable)
            for batch in sorted({lane.batch for lanes in wanted.values() for lane in lanes}):
                lanes = {
                    lane: loadable
                    for loadable in loadables
                    for lane in wanted.get(loadable.contender, ())
                    if lane.batch == batch
                }
                await self._round(model, batch, lanes)
        finally:
            await self._close()

    async def _round(self, model: str, batch: int, lanes: Mapping[Lane, Loadable]) -> None:
        usable: dict[Lane, Loadable] = {}
        for lane, loadable in lanes.items():
            error = self._failed.get(loadable.key) or _too_large(loadable.engine, batch)
            if error is None:
                usable[lane] = loadable
            else:
                self._recording.not_run([lane], error)
        if not usable:
            return
        spec, round_id = self._recording.suite.measure, f"{utc()}/{model}/host/{batch}"
        facts: dict[str, str | int] = {"model": model, "batch": batch, "scope": "host"}
        with self._recording.phase(f"warm up {model} batch {batch}", "warm-up", **facts):
            usable = {lane: loadable for lane, loadable in usable.items() if await self._warm_up(lane, loadable)}
        with self._recording.phase(f"measure {model} batch {batch}", "measure", **facts):
            outcomes = await interleave(
                list(usable),
                lambda lane, index: self._window(usable[lane], batch, spec.window_seconds),
                spec,
                lambda lane, index, window: self._recording.window(lane, round_id, index, window),
            )
        measured = {
            lane: Measured(loadable.engine, self._environments[loadable.key]) for lane, loadable in usable.items()
        }
        self._recording.rows(outcomes, measured, round_id)

    async def _warm_up(self, lane: Lane, loadable: Loadable) -> bool:
        seconds = self._recording.suite.measure.warmup_seconds
        if seconds <= 0:
            return True
        try:
            await self._window(loadable, lane.batch, seconds)
        except EnginehouseError as error:
            self._recording.not_run([lane], error)
            return False
        return True

    async def _window(self, loadable: Loadable, batch: int, seconds: float) -> Window:
        if loadable.key in self._failed:
            raise self._failed[loadable.key]
        worker, started = self._running[self._slot(loadable)], time.time()
        try:
            measured = await worker.measure(loadable.key, batch=batch, seconds=seconds, seed=self._recording.suite.seed)
            return Window(
                latencies_ns=tuple(measured.latencies_ns),
                wall_ns=measured.wall_ns,
                inferences=measured.inferences,
                cpu_ns=measured.cpu_ns,
                started=started,
                ended=time.time(),
            )
        except ValueError as error:
            raise InternalError(f"the worker measured nothing: {error}") from error
        except UnavailableError as error:
            await self._replace(loadable, error)
            raise

    async def _load(self, loadable: Loadable) -> None:
        slot = self._slot(loadable)
        try:
            if slot not in self._running:
                self._running[slot] = await self._workers.start(
                    loadable.contender.mode.backend, loadable.contender.device
                )
            await self._running[slot].load(
                loadable.key, loadable.directory, warmup=(), options=loadable.contender.mode.load_options
            )
            self._loaded[loadable.key] = loadable
            self._environments[loadable.key] = self._environment(slot)
        except EnginehouseError as error:
            self._failed[loadable.key] = error
            if isinstance(error, UnavailableError) and slot in self._running:
                await self._replace(loadable, error)

    async def _replace(self, guilty: Loadable, error: EnginehouseError) -> None:
        """A worker died with the guilty engine: start another with the engines that shared it."""
        slot = self._slot(guilty)
        self._failed[guilty.key] = error
        self._loaded.pop(guilty.key, None)
        survivors = [loadable for loadable in self._loaded.values() if self._slot(loadable) == slot]
        worker = self._running.pop(slot, None)
        if worker is not None:
            await _close_quietly(worker)
        for survivor in survivors:
            self._loaded.pop(survivor.key, None)
            await self._load(survivor)

    def _slot(self, loadable: Loadable) -> tuple[str, str]:
        return self._workers.environment(loadable.contender.mode.backend), loadable.contender.device

    def _environment(self, slot: tuple[str, str]) -> Environment:
        return Environment(self._machine, dict(self._running[slot].software), "worker", speed_settings())

    async def _close(self) -> None:
        for worker in self._running.values():
            await _close_quietly(worker)
        self._running.clear()
        self._loaded.clear()


def _too_large(engine: Engine, batch: int) -> EnginehouseError | None:
    if 0 < engine.max_batch_size < batch:
        return FailedPreconditionError(f"the engine takes at most batch {engine.max_batch_size}")
    return None


async def _close_quietly(worker: Worker) -> None:
    try:
        await worker.close()
    except EnginehouseError:
        return  # it is gone, which is what closing is for
