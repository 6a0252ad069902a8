"""Arrays in a GPU's memory, as libraries show them by `__cuda_array_interface__` (versions 2, 3). Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginehouse.client.tensors import datatype_of
from enginehouse.client.values import TensorSpec
from enginehouse.errors import InvalidArgumentError

# Types that hold the bits of a BF16, which NumPy's names do not have.
_BF16 = ("<V2", "|V2", "<u2")


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array on a device.

    Attributes:
        pointer: its first byte.
        typestr: NumPy's name of its dtype, such as "<f4".
        stream: the CUDA stream whose work it waits for; 0 when its library does not say; None when it waits for none.
    """

    pointer: int
    shape: tuple[int, ...]
    typestr: str
    nbytes: int
    read_only: bool
    stream: int | None


def is_device_array(value: Any) -> bool:
    """Whether a value shows device memory. PyTorch's tensors on a CPU do not."""
    return hasattr(value, "__cuda_array_interface__")


def device_array(value: Any, what: str) -> DeviceArray:
    """What `__cuda_array_interface__` says of a value.

    Args:
        what: it is for, such as "input 'x'".

    Raises:
        InvalidArgumentError: it is not C-contiguous, is masked, or says nothing that can be understood.
    """
    shown = value.__cuda_array_interface__
    try:
        shape = tuple(int(size) for size in shown["shape"])
        pointer, read_only = shown["data"]
        typestr = str(shown["typestr"])
        dtype = np.dtype(typestr)
        strides = shown.get("strides")
        stream = shown["stream"] if int(shown["version"]) >= 3 and "stream" in shown else 0
        array = DeviceArray(
            pointer=int(pointer),
            shape=shape,
            typestr=typestr,
            nbytes=math.prod(shape) * dtype.itemsize,
            read_only=bool(read_only),
            stream=None if stream is None else int(stream),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{what}: its __cuda_array_interface__ is not understood: {error!r}") from None
    if shown.get("mask") is not None:
        raise InvalidArgumentError(f"{what} is a masked device array: expected one without a mask")
    if strides is not None and not _is_contiguous(shape, strides, dtype.itemsize):
        raise InvalidArgumentError(
            f"{what} is a device array with strides {list(strides)}: expected C order without gaps, as "
            "cupy.ascontiguousarray(x) or x.contiguous() makes it"
        )
    if not array.nbytes:
        raise InvalidArgumentError(f"{what} is a device array without elements (shape {list(shape)}): pass NumPy's")
    return array


def fit_device(array: DeviceArray, spec: TensorSpec, what: str) -> tuple[str, DeviceArray]:
    """A device array for an input or output: (datatype, array). Nothing is cast on a device.

    Raises:
        InvalidArgumentError: the dtype or the shape is another.
    """
    dtype = np.dtype(array.typestr)
    if spec.dtype == "BF16":
        same = array.typestr in _BF16
    else:
        same = dtype.kind in "biuf" and datatype_of(np.empty(0, dtype)) == spec.dtype
    if not same or dtype.byteorder == ">":
        raise InvalidArgumentError(f"{what} is {spec.dtype}, and the device array {dtype}: cast it there first")
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for got, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidArgumentError(
            f"{what} has shape {list(spec.shape)} (-1 is any), and the device array {list(array.shape)}"
        )
    return spec.dtype, array


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
