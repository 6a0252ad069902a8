"""Device memory of this process by the driver's own library, for tests that need no more than that."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class CudaError(RuntimeError):
    """A call of the driver failed."""


def _driver() -> ctypes.CDLL:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
    ):
        _check(name, getattr(cuda, name)(*arguments))
    _check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))
    return cuda


def _check(name: str, status: int) -> None:
    if status:
        raise CudaError(f"{name}: {status}")


@contextmanager
def taken(size: int) -> Iterator[None]:
    """Hold about `size` bytes of device 0 for the length of a block, in as many parts of 256 MiB as fit."""
    cuda = _driver()
    part, pointers = 256 << 20, []
    try:
        for _ in range(max(0, size) // part):
            pointer = ctypes.c_uint64()
            if cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(part)):
                break
            pointers.append(pointer)
        yield
    finally:
        for pointer in pointers:
            cuda.cuMemFree_v2(pointer)
