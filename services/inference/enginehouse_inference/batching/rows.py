"""Rows of tensors: requests' rows joined to a batch's inputs, a batch's outputs cut into requests' rows. No copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from enginehouse.errors import InternalError
from enginehouse.workers.regions import RegionPart
from enginehouse.workers.shared import SharedPart
from enginehouse.workers.tensors import Buffer, FilePart, Part, TensorInput, TensorOutput, element_offsets
from enginehouse_inference.batching.policy import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class RequestInput:
    """One input of one request: its bytes as they came, or where they lie in a client's shared memory.

    `offsets`: of BYTES tensors, where each element begins and the last one ends.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Part
    offsets: Sequence[int] = ()

    def slice(self, start: int, stop: int) -> Part:
        """Rows `start` to `stop` of dimension 0."""
        rows = self.shape[0]
        if (start, stop) == (0, rows):
            return self.data
        if self.dtype == "BYTES":
            per_row = math.prod(self.shape[1:])
            begin, end = self.offsets[start * per_row], self.offsets[stop * per_row]
        else:
            row = len(self.data) // rows
            begin, end = start * row, stop * row
        if isinstance(self.data, FilePart | SharedPart):
            return self.data.slice(begin, end)
        if isinstance(self.data, RegionPart):
            raise InternalError(f"input {self.name!r} lies in device memory, and was cut")
        return memoryview(self.data)[begin:end]


@dataclass(frozen=True)
class OutputRows:
    """One output for one request: `parts`, one after the other, are its bytes.

    `placed`: it has no parts here, but that many bytes in a client's device memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Buffer, ...]
    placed: int = 0

    @property
    def size(self) -> int:
        """Bytes of the output."""
        return self.placed or sum(len(part) for part in self.parts)

    @classmethod
    def join(cls, pieces: Sequence[OutputRows]) -> OutputRows:
        """The pieces of a request that was split, in order, as one output."""
        first = pieces[0]
        if len(pieces) == 1:
            return first
        if any(piece.shape[1:] != first.shape[1:] for piece in pieces):
            shapes = ", ".join(str(list(piece.shape)) for piece in pieces)
            raise InternalError(f"output {first.name!r}: a split request came back in shapes that do not fit: {shapes}")
        rows = sum(piece.shape[0] for piece in pieces)
        return cls(first.name, first.dtype, (rows, *first.shape[1:]), tuple(p for piece in pieces for p in piece.parts))


def input_rows(batch: Batch[T], batched: bool, inputs_of: Callable[[T], Sequence[RequestInput]]) -> list[TensorInput]:
    """The inputs of a batch: for each name the requests' rows one after the other.

    The slices name their inputs in any order; the first slice's order is the batch's.
    """
    first = inputs_of(batch.slices[0].entry.item)
    if not batched:
        return [TensorInput(t.name, t.dtype, t.shape, (t.data,)) for t in first]
    rows = batch.rows
    tables = [{t.name: t for t in inputs_of(s.entry.item)} for s in batch.slices]
    return [
        TensorInput(
            tensor.name,
            tensor.dtype,
            (rows, *tensor.shape[1:]),
            tuple(
                table[tensor.name].slice(part.start, part.stop)
                for part, table in zip(batch.slices, tables, strict=True)
            ),
        )
        for tensor in first
    ]


def output_rows(
    outputs: Sequence[TensorOutput], counts: Sequence[int], batched: bool, model: str
) -> Sequence[Mapping[str, OutputRows]]:
    """Each slice's share of every output by name; `counts` are the slices' rows.

    Raises:
        InternalError: the engine changed dimension 0, so nobody can say whose rows are whose.
    """
    shares: list[dict[str, OutputRows]] = [{} for _ in counts]
    for tensor in outputs:
        if tensor.placed:  # such a request is alone in its batch
            shares[0][tensor.name] = OutputRows(tensor.name, tensor.dtype, tensor.shape, (), tensor.size)
            continue
        if not batched:
            shares[0][tensor.name] = OutputRows(tensor.name, tensor.dtype, tensor.shape, (tensor.data,))
            continue
        rows = sum(counts)
        if not tensor.shape or tensor.shape[0] != rows:
            raise InternalError(
                f"model {model}: output {tensor.name!r} has shape {list(tensor.shape)} for a batch of {rows}: "
                "expected dimension 0 to be the batch"
            )
        bounds = _row_bounds(tensor, rows)
        start = 0
        for share, count in zip(shares, counts, strict=True):
            data = tensor.data[bounds[start] : bounds[start + count]]
            share[tensor.name] = OutputRows(tensor.name, tensor.dtype, (count, *tensor.shape[1:]), (data,))
            start += count
    return shares


def _row_bounds(tensor: TensorOutput, rows: int) -> Sequence[int]:
    if tensor.dtype != "BYTES":
        size = len(tensor.data) // rows
        return range(0, size * rows + 1, size) if size else [0] * (rows + 1)
    per_row = math.prod(tensor.shape[1:])
    offsets = element_offsets(tensor.data, f"output {tensor.name!r}")
    return [offsets[row * per_row] for row in range(rows + 1)]
