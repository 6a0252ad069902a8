"""Tensors in shared memory: descriptions in frames to NumPy arrays and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, TensorSpec, numpy_dtype
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.segments import Segment, SegmentMap, SegmentPool

# Tensors begin on cache lines, which vector loads and device copies like.
ALIGNMENT = 64
_LENGTH = struct.Struct("<I")
# An output's name, content, shape and bytes.
_Prepared = tuple[str, "Array | bytes", tuple[int, ...], int]


def aligned(size: int) -> int:
    """`size` rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def decode_bytes(data: memoryview, count: int) -> Array:
    """`count` elements in Triton's serialization (u32 length and bytes each) as an object array of bytes, rank 1.

    Raises:
        ValueError: the data hold fewer or more elements.
    """
    elements = np.empty(count, dtype=np.object_)
    position = 0
    for index in range(count):
        if position + _LENGTH.size > len(data):
            raise ValueError(f"{index} elements: expected {count}")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise ValueError(f"element {index} has {length} bytes, {len(data) - position} are left")
        elements[index] = bytes(data[position : position + length])
        position += length
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes behind the last of {count} elements")
    return elements


def encode_bytes(array: Array) -> bytes:
    """The inverse of `decode_bytes`, in C order; text is encoded as UTF-8."""
    parts: list[bytes] = []
    for element in array.reshape(-1):
        data = element.encode() if isinstance(element, str) else bytes(element)
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def read_inputs(described: Sequence[Mapping[str, Any]], segments: SegmentMap) -> dict[str, Array]:
    """The arrays that an `infer` frame describes; numeric ones are views of the peer's segment.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensor and what is wrong.
    """
    arrays: dict[str, Array] = {}
    for tensor in described:
        name, dtype = str(tensor["name"]), str(tensor["dtype"])
        shape = tuple(int(d) for d in tensor["shape"])
        data = segments.view(int(tensor["segment"]), int(tensor["offset"]), int(tensor["bytes"]))
        count = math.prod(shape)
        try:
            if dtype == "BYTES":
                arrays[name] = decode_bytes(data, count).reshape(shape)
                continue
            kind = numpy_dtype(dtype)
            if len(data) != count * kind.itemsize:
                raise ValueError(f"{len(data)} bytes: {dtype} of shape {list(shape)} takes {count * kind.itemsize}")
            arrays[name] = np.frombuffer(data, dtype=kind).reshape(shape)
        except ValueError as error:
            raise WorkerError("INVALID_ARGUMENT", f"input {name!r}: {error}") from None
    return arrays


@dataclass(frozen=True)
class Outputs:
    """Outputs written to one segment of ours (None when there are none)."""

    described: list[dict[str, Any]]
    segment: int | None


def write_outputs(
    arrays: Mapping[str, Array], specs: Mapping[str, TensorSpec], names: Sequence[str], pool: SegmentPool
) -> Outputs:
    """Copy arrays into a segment, in the order of `names`; the dtypes are what the engine's signature says.

    Raises:
        WorkerError: INTERNAL when the engine did not return what its signature promises.
    """
    prepared: list[_Prepared] = []
    total = 0
    for name in names:
        if name not in arrays:
            raise WorkerError("INTERNAL", f"the engine did not return its output {name!r}")
        array, dtype = arrays[name], specs[name].dtype
        if dtype == "BYTES":
            data = encode_bytes(array)
            prepared.append((name, data, array.shape, len(data)))
        else:
            if array.dtype.itemsize != numpy_dtype(dtype).itemsize:
                raise WorkerError("INTERNAL", f"output {name!r} is NumPy's {array.dtype}: its signature says {dtype}")
            prepared.append((name, array, array.shape, array.nbytes))
        total += aligned(prepared[-1][3])
    if not prepared:
        return Outputs([], None)
    segment = pool.acquire(total)
    try:
        return Outputs(_write(prepared, specs, segment), segment.id)
    except BaseException:
        pool.release(segment.id)
        raise


def _write(prepared: Sequence[_Prepared], specs: Mapping[str, TensorSpec], segment: Segment) -> list[dict[str, Any]]:
    described, offset = [], 0
    memory = segment.view()
    for name, content, shape, size in prepared:
        if isinstance(content, bytes):
            memory[offset : offset + size] = content
        elif size:
            place = np.frombuffer(memory, dtype=content.dtype, count=content.size, offset=offset)
            np.copyto(place.reshape(shape), content)
        described.append(
            {
                "name": name,
                "dtype": specs[name].dtype,
                "shape": list(shape),
                "segment": segment.id,
                "offset": offset,
                "bytes": size,
            }
        )
        offset += aligned(size)
    return described
