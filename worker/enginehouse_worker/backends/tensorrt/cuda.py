"""CUDA calls that raise: memory, streams, events and graphs by cuda-python, whose calls hold no GIL while they wait.

A sticky error (an illegal address, a failed launch) leaves the context of the whole process unusable: no later call
can succeed. The process then ends at once with POISONED, and whoever supervises it starts another.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.errors import WorkerError

# Exit status of a worker whose device context is lost.
POISONED = 70
_STICKY = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorAssert",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorContained",
        "cudaErrorTensorMemoryLeak",
    }
)
_DEVICE = re.compile(r"(?:cuda|gpu)(?::(\d+))?")


def runtime() -> Any:
    """The bindings of the CUDA runtime.

    Raises:
        WorkerError: FAILED_PRECONDITION when cuda-python is not installed or finds no driver.
    """
    try:
        from cuda.bindings import runtime as bindings
    except ImportError as error:
        raise WorkerError("FAILED_PRECONDITION", f"cuda-bindings cannot be imported: {error}") from error
    return bindings


def checked(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call of the bindings, which return (error, values...).

    Raises:
        WorkerError: RESOURCE_EXHAUSTED when memory is out, UNAVAILABLE or FAILED_PRECONDITION otherwise.
    """
    error, *values = result
    if int(error) != 0:
        _fail(getattr(error, "name", str(error)), what)
    return values[0] if len(values) == 1 else tuple(values) if values else None


def _fail(name: str, what: str) -> None:
    if name in _STICKY:
        lose_device(f"{what}: {name}")
    runtime().cudaGetLastError()  # or the next call that asks for the last error hears of this one
    if name == "cudaErrorMemoryAllocation":
        raise WorkerError("RESOURCE_EXHAUSTED", f"{what}: out of device memory ({_memory()})")
    if name in ("cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInvalidDevice"):
        raise WorkerError("FAILED_PRECONDITION", f"{what}: {name}: this machine has no such GPU or no driver for it")
    raise WorkerError("INTERNAL", f"{what}: {name}")


def check_alive(error: Any, what: str) -> None:
    """For an error that the caller answers itself: ends the process when the error is sticky, else clears it."""
    name = getattr(error, "name", str(error))
    if name in _STICKY:
        lose_device(f"{what}: {name}")
    runtime().cudaGetLastError()


def lose_device(why: str) -> None:
    """End the process: its context is lost, and with it every engine that it holds."""
    print(f"the device context is lost, this worker ends: {why}", file=sys.stderr, flush=True)
    os._exit(POISONED)


def free_memory() -> tuple[int, int] | None:
    """Free and total bytes of the current device; None when it does not say."""
    error, free, total = runtime().cudaMemGetInfo()
    return (int(free), int(total)) if int(error) == 0 else None


def allocation_bytes(pointer: int) -> int | None:
    """Bytes from a pointer to the end of the allocation it is in; None when the driver does not say."""
    from cuda.bindings import driver

    error, base, size = driver.cuMemGetAddressRange(pointer)
    return int(base) + int(size) - pointer if int(error) == 0 else None


def _memory() -> str:
    known = free_memory()
    return f"{known[0] >> 20} of {known[1] >> 20} MiB free" if known else "free memory unknown"


@dataclass(frozen=True)
class DeviceFacts:
    """What an engine's manifest says of a GPU."""

    index: int
    product: str
    compute_capability: str
    driver_version: str
    total_memory_bytes: int

    def to_json(self) -> dict[str, str]:
        return {
            "kind": "gpu",
            "product": self.product,
            "compute_capability": self.compute_capability,
            "driver_version": self.driver_version,
        }


def open_device(device: str) -> DeviceFacts:
    """Make a device ("cuda:0") current in this thread and say what it is.

    Raises:
        WorkerError: INVALID_ARGUMENT for a name that is no GPU's; FAILED_PRECONDITION when there is no such GPU.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise WorkerError("INVALID_ARGUMENT", f"backend 'tensorrt' runs on a GPU such as 'cuda:0', not on {device!r}")
    index, cuda = int(match.group(1) or 0), runtime()
    checked(cuda.cudaSetDevice(index), f"opening {device}")
    properties = checked(cuda.cudaGetDeviceProperties(index), f"asking {device} what it is")
    version = checked(cuda.cudaDriverGetVersion(), "asking for the driver's version")
    return DeviceFacts(
        index=index,
        product=properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver_version=_driver_version() or f"CUDA {version // 1000}.{version % 1000 // 10}",
        total_memory_bytes=int(properties.totalGlobalMem),
    )


def _driver_version() -> str:
    try:
        with Path("/proc/driver/nvidia/version").open() as file:
            match = re.search(r"(\d+\.\d+(?:\.\d+)?)", file.readline())
    except OSError:
        return ""
    return match.group(1) if match else ""


class Memory:
    """Bytes on the device, or pinned ones on the host. Freed by `close`, not by the garbage collector."""

    def __init__(self, size: int, *, pinned: bool = False) -> None:
        cuda = runtime()
        what = f"allocating {max(size, 1) >> 10} KiB of {'pinned host' if pinned else 'device'} memory"
        allocate: Callable[..., Any] = cuda.cudaMallocHost if pinned else cuda.cudaMalloc
        self._free: Callable[..., Any] = cuda.cudaFreeHost if pinned else cuda.cudaFree
        self.pointer = int(checked(allocate(max(size, 1)), what))
        self.size = size

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array over the beginning of pinned memory, good until `close`."""
        if not math.prod(shape):
            return np.empty(shape, dtype)
        raw = (ctypes.c_uint8 * (math.prod(shape) * dtype.itemsize)).from_address(self.pointer)
        array: Array = np.frombuffer(memoryview(raw), dtype=dtype).reshape(shape)
        return array

    def close(self) -> None:
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self._free(pointer)
