"""A device whose workers are objects: what they load and how they end is a test's to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enginehouse_inference.devices.hosted import SupervisorSettings
from enginehouse_inference.devices.supervisor import DeviceWorker

from enginehouse.errors import EnginehouseError, UnavailableError
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.link import LoadedModel
from enginehouse.workers.tensors import TensorSpec

QUICK = SupervisorSettings(backoff_first=0.001, backoff_most=0.01, reload_interval=0.02)
LOADED = LoadedModel((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), True, 4, 0.0, 0)


class FakeWorker:
    """What a `DeviceWorker` uses of a `WorkerProcess`."""

    pid = 1
    obituary = "it died"
    backends: dict[str, str] = {}
    memory = ("host",)

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.loaded: list[str] = []

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    async def _until_dead(self, work: Any) -> None:
        working = asyncio.ensure_future(work)
        await asyncio.wait({working, self.exited}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        if not self.alive:
            raise UnavailableError(self.obituary)

    async def load(self, key: str, directory: Path, instances: int, warmup: Sequence[int], options: Any) -> LoadedModel:
        self._device.loads.append(key)
        name = key.split(":")[0]
        await self._until_dead(self._device.gate(name).wait())
        if errors := self._device.errors.get(name):
            raise errors.pop(0)
        self.loaded.append(key)
        return LOADED

    async def unload(self, key: str) -> None:
        # As in a worker: not before the loads that came before it.
        await self._until_dead(self._device.gate(key.split(":")[0]).wait())
        if key in self.loaded:
            self.loaded.remove(key)

    async def ping(self) -> None:
        return None

    async def kill(self) -> int:
        if self.alive:
            self.exited.set_result(-9)
        return -9

    close = kill


class FakeDevice:
    """Stands for `Devices`.

    `hold(name)`: loads of that model do not end before `gate(name).set()`. `errors`: what a model's next loads raise.
    """

    def __init__(self, *, starts: bool = True) -> None:
        self.started: list[FakeWorker] = []
        self.loads: list[str] = []
        self.errors: dict[str, list[EnginehouseError]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._starts = starts
        environment = WorkerEnvironment("fake", Path("python"))
        self.device = DeviceWorker(environment, "cpu", QUICK, self._start)  # type: ignore[arg-type]

    def worker(self, backend: str, kind: str = "") -> DeviceWorker:
        return self.device

    def gate(self, name: str) -> asyncio.Event:
        if name not in self._gates:
            self._gates[name] = asyncio.Event()
            self._gates[name].set()
        return self._gates[name]

    def hold(self, name: str) -> None:
        self.gate(name).clear()

    async def _start(self, environment: Any, device: str, log: Any) -> FakeWorker:
        if not self._starts:
            await asyncio.Event().wait()
        self.started.append(FakeWorker(self))
        return self.started[-1]


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.001)
