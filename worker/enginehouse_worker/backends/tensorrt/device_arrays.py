"""Arrays in device memory, as CuPy, PyTorch, pycuda and Numba show them: `__cuda_array_interface__`, version 2 or 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.errors import WorkerError

# Of the interface's stream numbers: the legacy default stream, on which version 2 leaves its work.
_LEGACY_STREAM = 1


@dataclass(frozen=True)
class DeviceView:
    """C-contiguous device memory. `stream`: where its owner's work is queued; None when there is none to wait for."""

    pointer: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stream: int | None = None
    readonly: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, self.readonly),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


def is_device_array(value: Any) -> bool:
    """Whether it is in device memory. NumPy arrays are not, whatever else they are."""
    return not isinstance(value, np.ndarray) and hasattr(value, "__cuda_array_interface__")


def read_interface(name: str, value: Any) -> DeviceView:
    """What an array says of itself. Pure.

    Raises:
        WorkerError: INVALID_ARGUMENT for an interface of another version, and for memory that is not C-contiguous.
    """
    if isinstance(value, DeviceView):
        return value
    interface = value.__cuda_array_interface__
    try:
        version, mask = int(interface["version"]), interface.get("mask")
        dtype = np.dtype(str(interface["typestr"]))
        shape = tuple(int(d) for d in interface["shape"])
        pointer, readonly = interface["data"]
        strides = interface.get("strides")
        stream = interface.get("stream", None if version >= 3 else _LEGACY_STREAM)
        view = DeviceView(int(pointer or 0), dtype, shape, None if stream is None else int(stream), bool(readonly))
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{name}: a bad __cuda_array_interface__: {error!r}") from None
    if version < 2 or mask is not None:
        raise WorkerError("INVALID_ARGUMENT", f"{name}: expected __cuda_array_interface__ version 2 or 3, no mask")
    if view.stream == 0 or min(shape, default=0) < 0:
        raise WorkerError("INVALID_ARGUMENT", f"{name}: stream 0 and negative dimensions are not allowed")
    if strides is not None and 0 not in shape and not _contiguous(shape, tuple(strides), dtype.itemsize):
        raise WorkerError(
            "INVALID_ARGUMENT", f"{name} has strides {list(strides)}; expected C-contiguous memory: make a copy of it"
        )
    return view


def check_memory(name: str, view: DeviceView, device: int) -> None:
    """Raise INVALID_ARGUMENT when the pointer is not memory of this device."""
    if not view.nbytes:
        return
    error, attributes = cuda.runtime().cudaPointerGetAttributes(view.pointer)
    if int(error) != 0:
        cuda.check_alive(error, f"asking where {name} is")
        raise WorkerError("INVALID_ARGUMENT", f"{name}: {view.pointer:#x} is no device memory")
    kind = getattr(attributes.type, "name", str(attributes.type))
    if kind not in ("cudaMemoryTypeDevice", "cudaMemoryTypeManaged"):
        raise WorkerError("INVALID_ARGUMENT", f"{name}: {view.pointer:#x} is {kind}; expected device memory")
    if kind == "cudaMemoryTypeDevice" and int(attributes.device) != device:
        raise WorkerError(
            "INVALID_ARGUMENT", f"{name} is on GPU {attributes.device}; the engine is on GPU {device}: copy it there"
        )


def check_type(name: str, view: DeviceView, stored: np.dtype[Any], wanted: str, signature: np.dtype[Any]) -> None:
    """Raise INVALID_ARGUMENT for another type, FAILED_PRECONDITION for one that the engine stores in another width."""
    if view.dtype == stored:
        return
    if view.dtype == signature:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"{name} is {wanted}, which this TensorRT stores as {stored}: pass it in host memory, or as {stored}",
        )
    raise WorkerError("INVALID_ARGUMENT", f"{name} is {view.dtype}; expected {wanted}")


def output_view(name: str, value: Any, shape: tuple[int, ...]) -> DeviceView:
    """An array to write results into.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is read-only or has another shape.
    """
    view = read_interface(name, value)
    if view.readonly:
        raise WorkerError("INVALID_ARGUMENT", f"{name} is read-only")
    if view.shape != shape:
        raise WorkerError("INVALID_ARGUMENT", f"{name} has shape {list(view.shape)}; the result has {list(shape)}")
    return view


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return len(shape) == len(strides)
