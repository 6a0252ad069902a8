"""Inputs on their way into shared memory: each part is copied once, from where it arrived to its place.

What lies in a client's device memory stays there.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.errors import InternalError
from enginehouse.workers.framing import Frame
from enginehouse.workers.regions import DeviceRegion, Place, RegionPart
from enginehouse.workers.segments import Segment, SegmentPool, aligned
from enginehouse.workers.tensors import FilePart, TensorInput


def write_inputs(pool: SegmentPool, inputs: Sequence[TensorInput]) -> tuple[Segment | None, list[Frame]]:
    """Copy tensors into one segment; returns it and their descriptions, as an `infer` frame has them.

    None in place of the segment when all of them lie in device memory.
    """
    regions = [_region_part(tensor) for tensor in inputs]
    if inputs and None not in regions:
        return None, [_in_region(tensor, part) for tensor, part in zip(inputs, regions, strict=True) if part]
    sizes = [0 if part else tensor.size for tensor, part in zip(inputs, regions, strict=True)]
    segment = pool.acquire(sum(aligned(size) for size in sizes))
    described: list[Frame] = []
    offset = 0
    try:
        memory = segment.view
        for tensor, size, region_part in zip(inputs, sizes, regions, strict=True):
            if region_part is not None:
                described.append(_in_region(tensor, region_part))
                continue
            position = offset
            for part in tensor.parts:
                place = memory[position : position + len(part)]
                if isinstance(part, FilePart):
                    part.read_into(place)
                elif not isinstance(part, RegionPart):
                    place[:] = part
                position += len(part)
            described.append(
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": tensor.shape,
                    "segment": segment.id,
                    "offset": offset,
                    "bytes": size,
                }
            )
            offset += aligned(size)
    except BaseException:
        pool.release(segment)
        raise
    return segment, described


def used_regions(inputs: Sequence[TensorInput], places: Sequence[Place]) -> list[DeviceRegion]:
    """The device memory that a request reads and writes, each region once."""
    parts = [part.region for tensor in inputs for part in tensor.parts if isinstance(part, RegionPart)]
    return list({region.number: region for region in (*parts, *(place.region for place in places))}.values())


def describe_places(places: Sequence[Place]) -> list[Frame]:
    """`places` of an `infer` frame."""
    return [{"name": p.name, "region": p.region.number, "offset": p.offset, "bytes": p.size} for p in places]


def _region_part(tensor: TensorInput) -> RegionPart | None:
    """The device memory that a tensor lies in; None when it comes in parts from this machine's own.

    Raises:
        InternalError: it is in both, which no request asks for: one that uses device memory is a batch of its own.
    """
    if not any(isinstance(part, RegionPart) for part in tensor.parts):
        return None
    part = tensor.parts[0]
    if len(tensor.parts) != 1 or not isinstance(part, RegionPart):
        raise InternalError(f"input {tensor.name!r} is in pieces, and one lies in device memory")
    return part


def _in_region(tensor: TensorInput, part: RegionPart) -> Frame:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "region": part.region.number,
        "offset": part.offset,
        "bytes": part.length,
    }
