"""Memory of other processes that the copy engines read and write directly: page-locked segments, and IPC regions."""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_right
from typing import Any

import numpy as np

from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.device_arrays import DeviceView
from enginehouse_worker.errors import WorkerError

HANDLE_BYTES = 64


class Ranges:
    """Disjoint ranges of addresses. Looked up without a lock: readers see all of a change or none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def add(self, start: int, size: int) -> None:
        with self._lock:
            ends = dict(zip(*self._known, strict=True))
            ends[start] = start + size
            starts = tuple(sorted(ends))
            self._known = (starts, tuple(ends[s] for s in starts))

    def remove(self, start: int) -> None:
        with self._lock:
            ends = dict(zip(*self._known, strict=True))
            ends.pop(start, None)
            self._known = (tuple(ends), tuple(ends.values()))

    def cover(self, start: int, size: int) -> bool:
        """Whether one range holds all `size` bytes from `start` on."""
        starts, ends = self._known
        index = bisect_right(starts, start) - 1
        return index >= 0 and start + size <= ends[index]


# Page locks belong to the process, whichever engine they were made for.
PINNED = Ranges()


class PeerMemory:
    """Registers host memory with a device and opens regions of device memory. Thread-safe."""

    def __init__(self, device: str) -> None:
        self._device = cuda.open_device(device)
        self._complained = False

    def register(self, address: int, size: int, *, writable: bool) -> bool:
        """Page-lock memory, so that copies need no staging; False when the system refuses (said once in the log).

        Args:
            writable: how the pages are mapped here; others are registered for reading only.
        """
        runtime = self._enter()
        flags = runtime.cudaHostRegisterPortable | (0 if writable else runtime.cudaHostRegisterReadOnly)
        (error,) = runtime.cudaHostRegister(address, size, flags)
        if int(error) == 0:
            PINNED.add(address, size)
            return True
        cuda.check_alive(error, "registering host memory")
        if writable and not self._complained:
            self._complained = True
            print(
                f"shared memory cannot be registered with the GPU ({getattr(error, 'name', error)}): "
                "its tensors are copied once more on the host",
                file=sys.stderr,
                flush=True,
            )
        return False

    def unregister(self, address: int) -> None:
        """Undo `register`; nothing may be copying from or to it."""
        PINNED.remove(address)
        cuda.checked(self._enter().cudaHostUnregister(address), "unregistering host memory")

    def open_region(self, handle: bytes, size: int) -> Region:
        """Another process's device memory, by its CUDA IPC handle.

        Raises:
            WorkerError: INVALID_ARGUMENT for a handle that opens nothing here, or less than `size` bytes.
        """
        if len(handle) != HANDLE_BYTES:
            raise WorkerError("INVALID_ARGUMENT", f"a CUDA IPC handle of {len(handle)} bytes; expected {HANDLE_BYTES}")
        runtime = self._enter()
        wrapped = runtime.cudaIpcMemHandle_t()
        wrapped.reserved = handle
        error, pointer = runtime.cudaIpcOpenMemHandle(wrapped, runtime.cudaIpcMemLazyEnablePeerAccess)
        if int(error) != 0:
            cuda.check_alive(error, "opening device memory")
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"the CUDA IPC handle cannot be opened ({getattr(error, 'name', error)}); expected one of memory that "
                f"cudaMalloc made in another, living process on GPU {self._device.index} of this machine",
            )
        region = Region(runtime, int(pointer), size)
        try:
            held = cuda.allocation_bytes(region.pointer)
            if held is not None and held < size:
                raise WorkerError("INVALID_ARGUMENT", f"a region of {size} bytes was announced; its memory has {held}")
        except BaseException:
            region.close()
            raise
        return region

    def check(self) -> None:
        """End the process when its device context is lost: an idle worker hears of that from no call of its own."""
        (error,) = self._enter().cudaStreamQuery(0)
        if int(error) != 0:  # or work is under way
            cuda.check_alive(error, "asking the device")

    def _enter(self) -> Any:
        runtime = cuda.runtime()
        cuda.checked(runtime.cudaSetDevice(self._device.index), "making the device current")
        return runtime


class Region:
    """Device memory of another process, from `pointer` on."""

    def __init__(self, runtime: Any, pointer: int, size: int) -> None:
        self._runtime = runtime
        self.pointer = pointer
        self.size = size

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> DeviceView:
        """An array in it, whose writer is done with it.

        Raises:
            WorkerError: INVALID_ARGUMENT when it does not lie in the region, or not on its elements' boundary.
        """
        size = math.prod(shape) * dtype.itemsize
        if offset < 0 or offset + size > self.size:
            message = f"bytes {offset} to {offset + size} of a region that has {self.size}"
            raise WorkerError("INVALID_ARGUMENT", message)
        if offset % dtype.itemsize:
            raise WorkerError("INVALID_ARGUMENT", f"offset {offset}; expected a multiple of {dtype.itemsize} bytes")
        return DeviceView(self.pointer + offset, dtype, shape)

    def close(self) -> None:
        """Unmap it; nothing may be using it."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            cuda.checked(self._runtime.cudaIpcCloseMemHandle(pointer), "closing device memory")
