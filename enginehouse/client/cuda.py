"""What sharing device memory with another process takes of the CUDA driver, by cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from enginehouse.client.device_arrays import DeviceArray
from enginehouse.errors import FailedPreconditionError, InternalError, InvalidArgumentError

_HANDLE_BYTES = 64
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE


@dataclass(frozen=True)
class Allocation:
    """The device memory that an array lies in. `identity`: a later one at the same address has another."""

    base: int
    size: int
    identity: int
    device: int


class DeviceDriver(Protocol):
    """What is needed of a device's driver. Any thread may call it."""

    def allocation(self, pointer: int, what: str) -> Allocation:
        """The allocation around a pointer; `what` it is for.

        Raises:
            InvalidArgumentError: it is no device memory, or none that other processes can open.
        """

    def handle(self, allocation: Allocation) -> bytes:
        """The handle by which another process opens an allocation."""

    def synchronize(self, array: DeviceArray) -> None:
        """Return when the work that an array waits for is done."""


def open_driver() -> DeviceDriver:
    """The CUDA driver.

    Raises:
        FailedPreconditionError: cuda-bindings is not installed, or finds no driver.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise FailedPreconditionError(
            f"a device array needs cuda-bindings, which cannot be imported ({error}): install enginehouse[cuda], or "
            "pass a NumPy array, such as x.get() of CuPy's or x.cpu().numpy() of PyTorch's"
        ) from None
    try:
        return CudaDriver(driver)
    except (InternalError, RuntimeError) as error:
        raise FailedPreconditionError(
            f"a device array needs a CUDA driver: {error}: pass a NumPy array where there is no GPU"
        ) from None


class CudaDriver:
    """The CUDA driver API; `bindings` is `cuda.bindings.driver`.

    The driver and not the runtime, because memory's own context counts: pycuda's is not the one that a runtime would
    make current.
    """

    def __init__(self, bindings: Any) -> None:
        self._cuda = bindings
        self._call("cuInit", 0)

    def allocation(self, pointer: int, what: str) -> Allocation:
        """See `DeviceDriver`."""
        try:
            kind = int(self._attribute("MEMORY_TYPE", pointer))
        except InternalError as error:
            raise InvalidArgumentError(f"{what}: {pointer:#x} is no device memory ({error.message})") from None
        if kind != _DEVICE_MEMORY or not self._attribute("IS_LEGACY_CUDA_IPC_CAPABLE", pointer):
            raise InvalidArgumentError(
                f"{what} lies in memory that other processes cannot open (managed or pinned memory, a stream-ordered "
                "pool such as cudaMallocAsync's, PyTorch's expandable segments): expected what cudaMalloc gives, as "
                "CuPy's and PyTorch's own allocators use it; or pass a NumPy array"
            )
        with self._context_of(pointer):
            base, size = self._call("cuMemGetAddressRange", pointer)
        return Allocation(
            base=int(base),
            size=int(size),
            identity=int(self._attribute("BUFFER_ID", pointer)),
            device=int(self._attribute("DEVICE_ORDINAL", pointer)),
        )

    def handle(self, allocation: Allocation) -> bytes:
        """See `DeviceDriver`."""
        with self._context_of(allocation.base):
            handle = self._call("cuIpcGetMemHandle", allocation.base)
        # By its address: `reserved` is not there in every version of the bindings.
        return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)

    def synchronize(self, array: DeviceArray) -> None:
        """See `DeviceDriver`."""
        if array.stream is None:
            return
        with self._context_of(array.pointer):
            if array.stream in (0, 2):  # not said, or the default stream of a thread that need not be this one
                self._call("cuCtxSynchronize")
            else:
                self._call("cuStreamSynchronize", array.stream)

    @contextmanager
    def _context_of(self, pointer: int) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._attribute("CONTEXT", pointer))
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def _attribute(self, name: str, pointer: int) -> Any:
        return self._call(
            "cuPointerGetAttribute", getattr(self._cuda.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}"), pointer
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, name)(*arguments)
        if int(error) != 0:
            raise InternalError(f"{name}: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else tuple(values)
