"""Worker processes of a benchmark and the engines in them: started, measured, replaced when one dies, closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.bench.environment import Environment, Machine, speed_settings
from enginehouse.bench.modes import Mode
from enginehouse.bench.seams import Engine, Worker, Workers
from enginehouse.bench.statistics import Window
from enginehouse.errors import EnginehouseError, InternalError, UnavailableError


@dataclass(frozen=True)
class Placed:
    """An engine on one device: "cpu" or "gpu:N"."""

    mode: Mode
    engine: Engine
    directory: Path
    device: str

    @property
    def key(self) -> str:
        return f"{self.mode.name}@{self.device}"


class Pool:
    """One worker process for each environment, device and kind of process; it holds all engines placed there."""

    def __init__(self, workers: Workers, machine: Machine) -> None:
        self._workers, self._machine = workers, machine
        self._running: dict[tuple[str, str, str], Worker] = {}
        self._loaded: dict[str, Placed] = {}
        self._environments: dict[str, Environment] = {}
        self._failed: dict[str, EnginehouseError] = {}

    async def load(self, placed: Placed) -> None:
        """Load an engine, once. What goes wrong is kept: `failure` says it."""
        if placed.key in self._loaded or placed.key in self._failed:
            return
        slot = self._slot(placed)
        try:
            if slot not in self._running:
                self._running[slot] = await self._workers.start(*slot[:2])
            worker = self._running[slot]
            await worker.load(placed.key, placed.directory, warmup=(), options=placed.mode.load_options)
            self._loaded[placed.key] = placed
            software = dict(worker.software)
            self._environments[placed.key] = Environment(self._machine, software, "worker", speed_settings())
        except EnginehouseError as error:
            self._failed[placed.key] = error
            if isinstance(error, UnavailableError) and slot in self._running:
                await self._replace(placed, error)

    def failure(self, placed: Placed) -> EnginehouseError | None:
        """Why an engine cannot run, or None."""
        return self._failed.get(placed.key)

    def environment(self, placed: Placed) -> Environment:
        """What a loaded engine runs in."""
        return self._environments[placed.key]

    def pids(self, devices: Sequence[str]) -> frozenset[int]:
        """Process ids of the workers on these devices."""
        return frozenset(worker.pid for (_, device, _), worker in self._running.items() if device in devices)

    async def window(self, placed: Placed, *, batch: int, seconds: float, seed: int, scope: str) -> Window:
        """One window of back-to-back inference.

        Raises:
            EnginehouseError: it failed; a worker that died is replaced for the engines that shared it.
        """
        if placed.key in self._failed:
            raise self._failed[placed.key]
        worker, started = self._running[self._slot(placed)], time.time()
        try:
            found = await worker.measure(placed.key, batch=batch, seconds=seconds, seed=seed, scope=scope)
            return Window(
                tuple(found.latencies_ns), found.wall_ns, found.inferences, found.cpu_ns, started, time.time()
            )
        except ValueError as error:
            raise InternalError(f"the worker measured nothing: {error}") from error
        except UnavailableError as error:
            await self._replace(placed, error)
            raise

    async def together(self, several: Sequence[Placed], *, batch: int, seconds: float, seed: int, scope: str) -> Window:
        """One window on several devices at once: inferences of all, over the time until the last was done.

        Raises:
            EnginehouseError: one of them failed.
        """
        tasks = [self.window(placed, batch=batch, seconds=seconds, seed=seed, scope=scope) for placed in several]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        windows = []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            windows.append(one)
        cpu = [window.cpu_ns for window in windows if window.cpu_ns is not None]
        return Window(
            latencies_ns=tuple(latency for window in windows for latency in window.latencies_ns),
            # Not the sum of the rates: a device that began late or ended early idled meanwhile.
            wall_ns=max(window.wall_ns for window in windows),
            inferences=sum(window.inferences for window in windows),
            cpu_ns=sum(cpu) if len(cpu) == len(windows) else None,
            started=min(window.started for window in windows),
            ended=max(window.ended for window in windows),
        )

    async def close(self) -> None:
        """End all workers."""
        for worker in self._running.values():
            await _close_quietly(worker)
        self._running.clear()
        self._loaded.clear()

    async def _replace(self, guilty: Placed, error: EnginehouseError) -> None:
        """A worker died with the guilty engine: start another with the engines that shared it."""
        slot = self._slot(guilty)
        self._failed[guilty.key] = error
        self._loaded.pop(guilty.key, None)
        survivors = [placed for placed in self._loaded.values() if self._slot(placed) == slot]
        worker = self._running.pop(slot, None)
        if worker is not None:
            await _close_quietly(worker)
        for survivor in survivors:
            self._loaded.pop(survivor.key, None)
            await self.load(survivor)

    def _slot(self, placed: Placed) -> tuple[str, str, str]:
        return self._workers.environment(placed.mode), placed.device, placed.mode.process


async def _close_quietly(worker: Worker) -> None:
    try:
        await worker.close()
    except EnginehouseError:
        return  # it is gone, which is what closing is for
