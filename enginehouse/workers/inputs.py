"""Inputs on their way into shared memory: each part is copied once, from where it arrived to its place.

What lies in a client's device memory stays there, and what lies in memory that the worker can read too is named to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from enginehouse.errors import InternalError
from enginehouse.workers.framing import Frame
from enginehouse.workers.regions import DeviceRegion, Place, RegionPart
from enginehouse.workers.segments import Segment, SegmentPool, aligned
from enginehouse.workers.shared import SharedFile, SharedPart, SharedSegment
from enginehouse.workers.tensors import FilePart, Part, TensorInput

# From what a worker can read too to its number there.
Number = Callable[[SharedSegment | SharedFile], int]


def write_inputs(
    pool: SegmentPool, inputs: Sequence[TensorInput], number: Number
) -> tuple[Segment | None, list[Frame]]:
    """Copy tensors into one segment; returns it and their descriptions, as an `infer` frame has them.

    None in place of the segment when nothing was copied: all of it lies in device memory, or in others' segments.

    Args:
        number: what the worker knows another's segment by.
    """
    copied = [_copied_bytes(tensor) for tensor in inputs]
    if inputs and all(size is None for size in copied):
        return None, [_elsewhere(tensor, number) for tensor in inputs]
    segment = pool.acquire(sum(aligned(size) for size in copied if size is not None))
    described: list[Frame] = []
    offset = 0
    try:
        memory = segment.view
        for tensor, size in zip(inputs, copied, strict=True):
            if size is None:
                described.append(_elsewhere(tensor, number))
                continue
            pieces = _copy(tensor, memory, segment.id, offset, number)
            described.append(_in_pieces(tensor, pieces))
            offset += aligned(size)
    except BaseException:
        pool.release(segment)
        raise
    return segment, described


def shared_parts(inputs: Sequence[TensorInput]) -> list[Part]:
    """The parts that stay where others wrote them."""
    return [part for tensor in inputs for part in tensor.parts if _source(part) is not None]


def used_regions(inputs: Sequence[TensorInput], places: Sequence[Place]) -> list[DeviceRegion]:
    """The device memory that a request reads and writes, each region once."""
    parts = [part.region for tensor in inputs for part in tensor.parts if isinstance(part, RegionPart)]
    return list({region.number: region for region in (*parts, *(place.region for place in places))}.values())


def describe_places(places: Sequence[Place]) -> list[Frame]:
    """`places` of an `infer` frame."""
    return [{"name": p.name, "region": p.region.number, "offset": p.offset, "bytes": p.size} for p in places]


def _copied_bytes(tensor: TensorInput) -> int | None:
    """How much of a tensor is copied; None when it stays where it is.

    Raises:
        InternalError: part of it lies in device memory, which no request asks for: one that uses that is a batch of its
            own.
    """
    if any(isinstance(part, RegionPart) for part in tensor.parts):
        if len(tensor.parts) != 1:
            raise InternalError(f"input {tensor.name!r} is in pieces, and one lies in device memory")
        return None
    copied = [len(part) for part in tensor.parts if _source(part) is None]
    return sum(copied) if copied or not tensor.parts else None


def _source(part: Part) -> SharedSegment | SharedFile | None:
    """What the worker can read a part from itself."""
    if isinstance(part, SharedPart):
        return part.segment
    if isinstance(part, FilePart) and isinstance(part.owner, SharedFile):
        return part.owner
    return None


def _piece(part: Part, number: Number) -> tuple[int, int, int] | None:
    source = _source(part)
    if source is None or not isinstance(part, SharedPart | FilePart):
        return None
    return number(source), part.offset, part.length


def _copy(
    tensor: TensorInput, memory: memoryview, segment: int, offset: int, number: Number
) -> list[tuple[int, int, int]]:
    """Copy a tensor's parts, from `offset` of our segment on; returns where its bytes then lie, in order."""
    pieces: list[tuple[int, int, int]] = []
    begin = position = offset
    for part in tensor.parts:
        if (piece := _piece(part, number)) is not None:
            if position > begin:
                pieces.append((segment, begin, position - begin))
                begin = position
            pieces.append(piece)
            continue
        place = memory[position : position + len(part)]
        if isinstance(part, FilePart):
            part.read_into(place)
        elif not isinstance(part, RegionPart | SharedPart):
            place[:] = part
        position += len(part)
    if position > begin or not pieces:
        pieces.append((segment, begin, position - begin))
    return pieces


def _elsewhere(tensor: TensorInput, number: Number) -> Frame:
    """A tensor of which nothing was copied."""
    part = tensor.parts[0]
    if isinstance(part, RegionPart):
        where = {"region": part.region.number, "offset": part.offset, "bytes": part.length}
        return {**_head(tensor), **where}
    return _in_pieces(tensor, [piece for p in tensor.parts if (piece := _piece(p, number)) is not None])


def _in_pieces(tensor: TensorInput, pieces: Sequence[tuple[int, int, int]]) -> Frame:
    if len(pieces) > 1:
        return {**_head(tensor), "pieces": pieces}
    ((segment, offset, size),) = pieces
    return {**_head(tensor), "segment": segment, "offset": offset, "bytes": size}


def _head(tensor: TensorInput) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape}
