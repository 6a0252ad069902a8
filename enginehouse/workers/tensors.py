"""Tensors on their way to and from a worker, and the Open Inference Protocol's dtypes."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.regions import RegionPart
from enginehouse.workers.shared import SharedPart

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

_LENGTH = struct.Struct("<I")
_NUMPY: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.uint16,  # raw: NumPy has no bfloat16
    "BYTES": np.object_,
}
DTYPES = tuple(_NUMPY)
# Bytes of one element; BYTES elements vary.
ITEM_BYTES: Mapping[str, int] = {name: np.dtype(kind).itemsize for name, kind in _NUMPY.items() if name != "BYTES"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine: a protocol dtype, and -1 where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        return cls(str(value["name"]), str(value["dtype"]), tuple(int(d) for d in value["shape"]))


@dataclass(frozen=True)
class FilePart:
    """Bytes of a file, such as a client's POSIX shared memory.

    They are read, not mapped: the file is the client's, and a map of a file that its owner truncates would kill us.
    `owner` keeps the descriptor open; a worker reads a `SharedFile` itself.
    """

    descriptor: int
    offset: int
    length: int
    owner: object = None

    def __len__(self) -> int:
        return self.length

    def slice(self, start: int, stop: int) -> FilePart:
        """Bytes `start` to `stop` of these."""
        return FilePart(self.descriptor, self.offset + start, stop - start, self.owner)

    def read_into(self, memory: memoryview) -> None:
        """Fill `memory`, which is as long as this.

        Raises:
            InvalidArgumentError: the file ends before.
        """
        done = 0
        while done < self.length:
            count = os.preadv(self.descriptor, [memory[done:]], self.offset + done)
            if not count:
                raise InvalidArgumentError(
                    f"shared memory ends after {self.offset + done} bytes: expected {self.offset + self.length}"
                )
            done += count

    def read(self) -> bytes:
        """A copy of the bytes."""
        data = bytearray(self.length)
        self.read_into(memoryview(data))
        return bytes(data)


Part = bytes | memoryview | FilePart | RegionPart | SharedPart


@dataclass(frozen=True)
class TensorInput:
    """An input tensor in pieces: `parts`, one after the other, are its bytes in C order.

    A batch of several requests is one tensor whose parts are the requests' rows, so that each goes from where it
    arrived straight to its place in shared memory. BYTES are serialized as in Triton (u32 length and bytes each).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[Part]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True)
class TensorOutput:
    """An output tensor: `data` is a view of shared memory, valid until its result is released.

    `placed`: it lies in a client's device memory, and `data` is empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    placed: bool = False

    @property
    def size(self) -> int:
        """Bytes of the tensor, wherever it lies."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype] if self.placed else len(self.data)

    def array(self) -> Array:
        """A copy as an array; BF16 raw as uint16, BYTES as an object array of bytes."""
        if self.dtype == "BYTES":
            return decode_bytes(self.data, math.prod(self.shape)).reshape(self.shape)
        return np.frombuffer(bytes(self.data), dtype=numpy_dtype(self.dtype)).reshape(self.shape)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a protocol dtype; BF16 as raw uint16, BYTES as object.

    Raises:
        InvalidArgumentError: the protocol has no such dtype.
    """
    if name not in _NUMPY:
        raise InvalidArgumentError(f"unknown dtype {name!r}: expected one of {', '.join(DTYPES)}")
    kind: np.dtype[Any] = np.dtype(_NUMPY[name])
    return kind


def protocol_dtype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype.

    Raises:
        InvalidArgumentError: the protocol has no such dtype.
    """
    if dtype.kind in "OSU":
        return "BYTES"
    for name, known in _NUMPY.items():
        if name not in ("BF16", "BYTES") and np.dtype(known) == dtype:
            return name
    raise InvalidArgumentError(f"the Open Inference Protocol has no dtype for NumPy's {dtype}")


def encode_bytes(elements: Iterable[bytes | str]) -> bytes:
    """Triton's serialization of BYTES elements: u32 length and bytes each; text as UTF-8."""
    parts: list[bytes] = []
    for element in elements:
        data = element.encode() if isinstance(element, str) else bytes(element)
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def element_offsets(data: Buffer, what: str) -> list[int]:
    """Where each element of serialized BYTES begins, and at the end where the last one ends.

    Raises:
        InvalidArgumentError: the data end inside an element; `what` names them.
    """
    offsets, position = [0], 0
    while position < len(data):
        if position + _LENGTH.size > len(data):
            raise InvalidArgumentError(f"{what}: {len(data) - position} bytes behind the last BYTES element")
        end = position + _LENGTH.size + int(_LENGTH.unpack_from(data, position)[0])
        if end > len(data):
            raise InvalidArgumentError(
                f"{what}: BYTES element {len(offsets) - 1} says {end - position - _LENGTH.size} bytes, "
                f"{len(data) - position - _LENGTH.size} are left"
            )
        offsets.append(end)
        position = end
    return offsets


def decode_bytes(data: Buffer, count: int) -> Array:
    """The elements of serialized BYTES, as an object array of bytes of rank 1.

    Raises:
        InvalidArgumentError: there are not `count` of them.
    """
    offsets = element_offsets(data, "a tensor")
    if len(offsets) - 1 != count:
        raise InvalidArgumentError(f"a tensor holds {len(offsets) - 1} BYTES elements: expected {count}")
    elements = np.empty(count, dtype=np.object_)
    for index in range(count):
        elements[index] = bytes(data[offsets[index] + _LENGTH.size : offsets[index + 1]])
    return elements


def tensor_input(name: str, array: Array, dtype: str | None = None) -> TensorInput:
    """An array as an input tensor, without a copy when it is contiguous. `dtype` overrides NumPy's (BF16 as uint16)."""
    kind = dtype or protocol_dtype(array.dtype)
    if kind == "BYTES":
        return TensorInput(name, kind, array.shape, (encode_bytes(array.reshape(-1).tolist()),))
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return TensorInput(name, kind, array.shape, (flat.data,))
