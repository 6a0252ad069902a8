"""Tensors in shared memory: descriptions in frames to NumPy arrays and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import (
    Array,
    DeviceArray,
    DeviceMemory,
    FilePiece,
    Pieces,
    TensorSpec,
    numpy_dtype,
)
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.regions import RegionMap
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


def read_inputs(
    described: Sequence[Mapping[str, Any]], segments: SegmentMap, regions: RegionMap | None = None, *, join: bool = True
) -> dict[str, Array | Pieces | DeviceArray]:
    """The arrays that an `infer` frame describes; numeric ones are views of the peer's segment or region.

    Args:
        regions: where inputs in device memory are; without it they are refused.
        join: copy what lies in several pieces into one array; else it is `Pieces`.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensor and what is wrong.
    """
    arrays: dict[str, Array | Pieces | DeviceArray] = {}
    for tensor in described:
        name, dtype = str(tensor["name"]), str(tensor["dtype"])
        shape = tuple(int(d) for d in tensor["shape"])
        if "region" in tensor:
            arrays[name] = _read_region(tensor, dtype, shape, regions)
            continue
        parts = [segments.piece(*piece) for piece in pieces_of(tensor)]
        first = parts[0] if len(parts) == 1 else None
        count = math.prod(shape)
        try:
            if dtype == "BYTES":
                data = first if isinstance(first, memoryview) else _pieces(parts).joined().data
                arrays[name] = decode_bytes(data, count).reshape(shape)
                continue
            kind = numpy_dtype(dtype)
            size = sum(part.size if isinstance(part, FilePiece) else len(part) for part in parts)
            if size != count * kind.itemsize:
                raise ValueError(f"{size} bytes: {dtype} of shape {list(shape)} takes {count * kind.itemsize}")
            if isinstance(first, memoryview):
                arrays[name] = np.frombuffer(first, dtype=kind).reshape(shape)
                continue
            pieces = replace(_pieces(parts), dtype=kind, shape=shape)
            arrays[name] = pieces.joined() if join else pieces
        except ValueError as error:
            raise WorkerError("INVALID_ARGUMENT", f"input {name!r}: {error}") from None
    return arrays


def _pieces(parts: Sequence[memoryview | FilePiece]) -> Pieces:
    """The parts as bytes, one after the other."""
    arrays = tuple(p if isinstance(p, FilePiece) else np.frombuffer(p, np.uint8) for p in parts)
    return Pieces(arrays, np.dtype(np.uint8), (sum(array.size for array in arrays),))


def pieces_of(tensor: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Where a described tensor's bytes lie in segments: segment, offset and bytes of each piece; none in a region."""
    if "region" in tensor:
        return []
    if "pieces" not in tensor:
        return [(int(tensor["segment"]), int(tensor["offset"]), int(tensor["bytes"]))]
    return [(int(segment), int(offset), int(size)) for segment, offset, size in tensor["pieces"]]


def _read_region(
    tensor: Mapping[str, Any], dtype: str, shape: tuple[int, ...], regions: RegionMap | None
) -> DeviceArray:
    if regions is None:
        raise WorkerError("FAILED_PRECONDITION", f"input {tensor['name']!r}: this engine takes no device memory")
    try:
        array = regions.array(int(tensor["region"]), dtype, shape, int(tensor["offset"]))
        needed = math.prod(shape) * numpy_dtype(dtype).itemsize
        if int(tensor["bytes"]) != needed:
            raise ValueError(f"{tensor['bytes']} bytes: {dtype} of shape {list(shape)} takes {needed}")
    except (WorkerError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"input {tensor['name']!r}: {error}") from None
    return array


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


@dataclass(frozen=True)
class Places:
    """Where outputs go, before they are there: `arrays` by name, `described` as the answer says it."""

    arrays: dict[str, Array | DeviceArray]
    described: list[dict[str, Any]]
    segment: int | None


def place_outputs(
    shapes: Mapping[str, tuple[int, ...]],
    specs: Mapping[str, TensorSpec],
    wanted: Sequence[Mapping[str, Any]],
    pool: SegmentPool,
    regions: RegionMap,
    memory: DeviceMemory,
) -> Places:
    """Room for outputs of known shapes: in the regions that `wanted` names, the others in one segment of ours.

    Args:
        shapes: of the outputs to give, in order.
        wanted: the frame's `places`.

    Raises:
        WorkerError: INVALID_ARGUMENT for a place that is too small, or of an output that is not given.
    """
    places = {str(place["name"]): place for place in wanted}
    if unknown := [name for name in places if name not in shapes]:
        raise WorkerError("INVALID_ARGUMENT", f"a place for {unknown[0]!r}, which is none of the outputs asked for")
    sizes = {name: math.prod(shape) * numpy_dtype(specs[name].dtype).itemsize for name, shape in shapes.items()}
    arrays: dict[str, Array | DeviceArray] = {}
    for name, place in places.items():
        if int(place["bytes"]) < sizes[name]:
            raise WorkerError(
                "INVALID_ARGUMENT", f"output {name!r} has {sizes[name]} bytes; its place has {place['bytes']}"
            )
        arrays[name] = regions.array(int(place["region"]), specs[name].dtype, shapes[name], int(place["offset"]))
    total = sum(aligned(size) for name, size in sizes.items() if name not in places)
    segment = pool.acquire(total, memory) if len(places) < len(shapes) else None
    described, offset = [], 0
    for name, shape in shapes.items():
        entry = {"name": name, "dtype": specs[name].dtype, "shape": list(shape), "bytes": sizes[name]}
        if name in places:
            described.append({**entry, "region": int(places[name]["region"]), "offset": int(places[name]["offset"])})
            continue
        assert segment is not None
        kind = numpy_dtype(specs[name].dtype)
        arrays[name] = np.frombuffer(segment.view(), kind, math.prod(shape), offset).reshape(shape)
        described.append({**entry, "segment": segment.id, "offset": offset})
        offset += aligned(sizes[name])
    return Places(arrays, described, None if segment is None else segment.id)


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
