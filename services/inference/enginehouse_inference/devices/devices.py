"""The worker processes of this process's device, by environment."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter

from enginehouse.errors import FailedPreconditionError
from enginehouse.workers.environments import BACKEND_ENVIRONMENTS, WorkerEnvironments
from enginehouse.workers.regions import DeviceRegion
from enginehouse_inference.devices.hosted import SupervisorSettings
from enginehouse_inference.devices.supervisor import DeviceWorker

CPU = "cpu"
_GPU = re.compile(r"(?:cuda|gpu)(?::(\d+))?")


def gpu_index(device: str) -> int | None:
    """The number of a GPU such as "cuda:1"; None for a CPU."""
    match = _GPU.fullmatch(device)
    return None if match is None else int(match.group(1) or 0)


class Devices:
    """The worker of each environment on this process's device, started when first needed.

    A process has one device. Where that is a GPU, engines that were built for a CPU run beside it, on the CPU.

    Args:
        per_model: on the CPU, start a worker for each engine, which ends with it.
    """

    def __init__(
        self,
        environments: WorkerEnvironments,
        device: str,
        settings: SupervisorSettings,
        per_model: bool = False,
    ) -> None:
        self._environments = environments
        self._device = device
        self._settings = settings
        self._per_model = per_model
        self._workers: dict[tuple[str, str, int], DeviceWorker] = {}
        self._numbers = itertools.count(1)
        # Of workers that ended with their engines.
        self._past_deaths: Counter[str] = Counter()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def has_gpu(self) -> bool:
        return gpu_index(self._device) is not None

    @property
    def workers(self) -> list[DeviceWorker]:
        """Those that were needed so far."""
        return list(self._workers.values())

    def worker(self, backend: str, kind: str = "") -> DeviceWorker:
        """The worker that runs a backend's engines.

        Args:
            kind: of the device that the engine was built for, "cpu" or "gpu"; empty when it does not say.

        Raises:
            InvalidArgumentError: there is no such backend.
            FailedPreconditionError: its environment is not installed here, or the engine needs a GPU and there is none.
        """
        if kind == "gpu" and not self.has_gpu:
            raise FailedPreconditionError(
                f"the engine was built for a GPU, and this process serves on {self._device!r}: start one with "
                "ENGINEHOUSE_DEVICE=cuda:0, or build an engine for a CPU"
            )
        environment = self._environments.for_backend(backend)
        device = CPU if kind == "cpu" else self._device
        alone = self._per_model and device == CPU
        key = (BACKEND_ENVIRONMENTS[backend], device, next(self._numbers) if alone else 0)
        if key not in self._workers:
            ended = (lambda: self._ended(key)) if alone else None
            self._workers[key] = DeviceWorker(environment, device, self._settings, ended=ended)
        return self._workers[key]

    def deaths(self) -> dict[str, int]:
        """How many workers of each name ended without being told to."""
        found = Counter(self._past_deaths)
        for worker in self._workers.values():
            found[worker.name] += worker.deaths
        return dict(found)

    def _ended(self, key: tuple[str, str, int]) -> None:
        worker = self._workers.pop(key, None)
        if worker is not None:
            self._past_deaths[worker.name] += worker.deaths

    def require_cuda_memory(self) -> None:
        """Check that clients' CUDA memory is of use here.

        Raises:
            FailedPreconditionError: this process has no GPU.
        """
        if not self.has_gpu:
            raise FailedPreconditionError(
                f"no GPU in this process, which serves on {self._device!r}: CUDA shared memory cannot be registered; "
                "use system shared memory, or ask a process that was started with ENGINEHOUSE_DEVICE=cuda:0"
            )

    async def open_region(self, region: DeviceRegion) -> None:
        """Have the workers that run open a client's memory; others do so when it is first used.

        Raises:
            EnginehouseError: one cannot.
        """
        await asyncio.gather(*(worker.open_region(region) for worker in self._workers.values()))

    def close_region(self, region: DeviceRegion) -> None:
        """Have the workers close a client's memory that nobody uses; `regions_closed` waits for it."""
        for worker in self._workers.values():
            task = asyncio.get_running_loop().create_task(worker.close_region(region))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def regions_closed(self) -> None:
        """Return when what `close_region` began has ended."""
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
