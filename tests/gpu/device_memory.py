"""Device memory of this process by the driver's own library, for tests that need no more than that."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Few large ones first: each takes time, and its size is rounded.
PARTS = (4 << 30, 256 << 20, 32 << 20)


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


def _free(cuda: ctypes.CDLL) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check("cuMemGetInfo", cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return free.value


@contextmanager
def taken(leaving: int) -> Iterator[None]:
    """Hold what device 0 has free but for about `leaving` bytes, for the length of a block."""
    cuda = _driver()  # which takes some too
    pointers = []
    try:
        for part in PARTS:
            while _free(cuda) >= leaving + part:
                pointer = ctypes.c_uint64()
                if cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(part)):
                    break
                pointers.append(pointer)
        yield
    finally:
        for pointer in pointers:
            cuda.cuMemFree_v2(pointer)
