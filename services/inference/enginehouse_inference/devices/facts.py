"""What this process's device is: the GPU as NVML names it, and the versions of the backends that run on it."""

from __future__ import annotations

import asyncio
import os

import pynvml
import structlog

from enginehouse.errors import EnginehouseError
from enginehouse.workers.environments import BACKEND_ENVIRONMENTS, WorkerEnvironments
from enginehouse.workers.link import WorkerProcess
from enginehouse_inference.desired.fitting import Here
from enginehouse_inference.devices.devices import gpu_index

_log = structlog.get_logger("devices")


class DeviceFacts:
    """Asked when first needed: most processes never are.

    Args:
        device: such as "cuda:0" or "cpu".
    """

    def __init__(self, environments: WorkerEnvironments, device: str) -> None:
        self._environments = environments
        self._device = device
        self._versions: dict[str, asyncio.Task[str]] = {}
        self._gpu: tuple[str, str] | None = None

    async def here(self, backend: str) -> Here:
        """What engines of a backend find here."""
        installed = frozenset(self._environments.installed)
        index = gpu_index(self._device)
        if index is None:
            return Here(installed)
        if self._gpu is None:
            self._gpu = await asyncio.to_thread(_gpu, index)
        version = await self._version(backend)
        return Here(installed, *self._gpu, {backend: version} if version else {}, gpu=True)

    async def _version(self, backend: str) -> str:
        """A backend's version, as its worker says it; empty when none can be started."""
        if backend not in self._versions:
            self._versions[backend] = asyncio.ensure_future(self._ask(backend))
        return await asyncio.shield(self._versions[backend])

    async def _ask(self, backend: str) -> str:
        environment = self._environments.installed.get(BACKEND_ENVIRONMENTS.get(backend, ""))
        if environment is None:
            return ""
        try:
            worker = await WorkerProcess.start(environment, self._device, log=lambda line: None)
        except EnginehouseError as error:
            _log.warning("a backend's version is not known", backend=backend, reason=error.message)
            return ""
        try:
            return str(worker.backends.get(backend, ""))
        finally:
            await worker.kill()


def _gpu(index: int) -> tuple[str, str]:
    """A GPU's product and compute capability; empty where there is no driver."""
    try:
        pynvml.nvmlInit()
        try:
            handle = _handle(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            return str(pynvml.nvmlDeviceGetName(handle)), f"{major}.{minor}"
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        _log.warning("the GPU's product is not known", reason=str(error))
        return "", ""


def _handle(index: int) -> object:
    """CUDA counts the GPUs that CUDA_VISIBLE_DEVICES leaves, by number or UUID; NVML counts all."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if index < len(visible):
        if not visible[index].isdigit():
            return pynvml.nvmlDeviceGetHandleByUUID(visible[index])
        index = int(visible[index])
    return pynvml.nvmlDeviceGetHandleByIndex(index)
