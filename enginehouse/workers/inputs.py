"""Inputs on their way into shared memory: each part is copied once, from where it arrived to its place."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.workers.framing import Frame
from enginehouse.workers.segments import Segment, SegmentPool, aligned
from enginehouse.workers.tensors import FilePart, TensorInput


def write_inputs(pool: SegmentPool, inputs: Sequence[TensorInput]) -> tuple[Segment, list[Frame]]:
    """Copy tensors into one segment; returns it and their descriptions, as an `infer` frame has them."""
    sizes = [tensor.size for tensor in inputs]
    segment = pool.acquire(sum(aligned(size) for size in sizes))
    described: list[Frame] = []
    offset = 0
    try:
        memory = segment.view
        for tensor, size in zip(inputs, sizes, strict=True):
            position = offset
            for part in tensor.parts:
                place = memory[position : position + len(part)]
                if isinstance(part, FilePart):
                    part.read_into(place)
                else:
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
