"""Computes shapes that are known but for some dimensions, so that a Reshape's target becomes a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from enginehouse_worker.graphs.editing import (
    SHAPE_CONSTANT_ELEMENTS,
    Dimension,
    EditableGraph,
    Inferred,
    attributes,
)
from enginehouse_worker.graphs.naming import unique_name


@dataclass(frozen=True)
class _Vector:
    """A tensor of integers, some of them known by a symbol or not at all; `scalar` when it has rank 0."""

    values: tuple[Dimension, ...]
    scalar: bool = False


def fold_shapes(graph: EditableGraph) -> None:
    """Replace shape computations whose result is known, and those that a Reshape can do without, in place.

    A Reshape's target takes 0 where a dimension is its input's own of the same symbol, and -1 in at most one place.
    """
    inferred = graph.infer()
    vectors = {
        name: _Vector(tuple(int(v) for v in value.reshape(-1)), value.ndim == 0)
        for name, value in graph.constants.items()
        if value.dtype in (np.int64, np.int32) and value.ndim <= 1 and value.size <= SHAPE_CONSTANT_ELEMENTS
    }
    outputs = set(graph.output_names)
    types: dict[str, type] = {}
    kept = []
    for node in graph.nodes:
        vector = _vector(node, vectors, inferred)
        if vector is not None and len(vector.values) <= SHAPE_CONSTANT_ELEMENTS:
            vectors[node.output[0]] = vector
            known = [value for value in vector.values if isinstance(value, int)]
            if len(known) == len(vector.values) and node.output[0] not in outputs:
                types[node.output[0]] = np.int32 if inferred.types.get(node.output[0]) == 6 else np.int64
                shape = () if vector.scalar else (len(known),)
                graph.constants[node.output[0]] = np.array(known, types[node.output[0]]).reshape(shape)
                continue
        kept.append(node)
    graph.nodes[:] = kept
    taken = graph.names()
    for node in graph.nodes:
        if node.op_type == "Reshape" and node.input[1] in vectors and not attributes(node).get("allowzero", 0):
            target = _target(node, vectors[node.input[1]].values, inferred)
            if target is not None:
                name = unique_name(f"{node.output[0]}/shape", taken)
                graph.constants[name] = np.array(target, np.int64)
                node.input[1] = name
    graph.drop_unread()


def _target(node: onnx.NodeProto, wanted: Sequence[Dimension], inferred: Inferred) -> list[int] | None:
    """A Reshape's target without symbols; None when it needs them, or is one already."""
    source = inferred.shapes.get(node.input[0], ())
    result = inferred.shapes.get(node.output[0], ())
    target: list[int | None] = []
    for axis, value in enumerate(wanted):
        same = axis < len(source) and isinstance(source[axis], str) and value == source[axis]
        target.append(0 if same else value if isinstance(value, int) else None)
    # What inference found is better than -1, of which there may be one only.
    for axis, value in enumerate(target):
        found = result[axis] if len(result) == len(target) else None
        if value in (-1, None) and isinstance(found, int):
            target[axis] = found
    if target.count(None) + target.count(-1) == 0 and target.count(0) == 1:
        # All else is known: -1 says the same for an input of any rank.
        axis = target.index(0)
        if len(source) > axis and isinstance(source[axis], str):
            target[axis] = -1
    if target.count(None) + target.count(-1) > 1:
        return None
    made = [-1 if value is None else value for value in target]
    return made if made != list(wanted) else None


def _vector(node: onnx.NodeProto, vectors: dict[str, _Vector], inferred: Inferred) -> _Vector | None:
    """The integers that a node computes, if it is one that shapes are computed with."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    if node.op_type == "Shape":
        shape = inferred.shapes.get(node.input[0])
        options = attributes(node)
        return None if shape is None else _Vector(shape[options.get("start", 0) : options.get("end", len(shape))])
    operands = [vectors.get(name) for name in node.input if name]
    first = operands[0] if operands else None
    if first is None:
        return None
    if node.op_type in ("Identity", "Cast"):
        # A Cast to a float ends the computation of a shape.
        integer = node.op_type == "Identity" or attributes(node).get("to") in (6, 7)
        return first if integer else None
    if any(operand is None for operand in operands):
        return None
    given = [operand for operand in operands if operand is not None]
    if node.op_type == "Concat":
        return None if any(o.scalar for o in given) else _Vector(tuple(v for o in given for v in o.values))
    if node.op_type in ("Squeeze", "Unsqueeze"):
        # Between rank 0 and 1; anything else is no vector.
        if node.op_type == "Unsqueeze":
            return _Vector(first.values) if first.scalar else None
        return _Vector(first.values, scalar=True) if len(first.values) == 1 else None
    if node.op_type == "Gather":
        return _gather(first, given[1])
    if node.op_type == "Slice":
        return _slice(node, given)
    if node.op_type in ("Add", "Sub", "Mul") and len(given) == 2:
        return _arithmetic(node.op_type, *given)
    return None


def _gather(data: _Vector, indices: _Vector) -> _Vector | None:
    size = len(data.values)
    chosen = [i for i in indices.values if isinstance(i, int) and -size <= i < size]
    if data.scalar or len(chosen) != len(indices.values):
        return None
    return _Vector(tuple(data.values[i] for i in chosen), indices.scalar)


def _slice(node: onnx.NodeProto, given: Sequence[_Vector]) -> _Vector | None:
    if len(given) != len(node.input) or len(given) < 3 or any(len(o.values) != 1 for o in given[1:]):
        return None
    start, end, *_ = (o.values[0] for o in given[1:])
    step = given[4].values[0] if len(given) > 4 else 1
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step < 1:
        return None
    return _Vector(given[0].values[start:end:step])


def _arithmetic(op_type: str, left: _Vector, right: _Vector) -> _Vector | None:
    size = max(len(left.values), len(right.values))
    if len(left.values) not in (1, size) or len(right.values) not in (1, size):
        return None
    values: list[Dimension] = []
    for position in range(size):
        a, b = left.values[position % len(left.values)], right.values[position % len(right.values)]
        if not isinstance(a, int) or not isinstance(b, int):
            values.append(None)
            continue
        values.append(a + b if op_type == "Add" else a - b if op_type == "Sub" else a * b)
    return _Vector(tuple(values), left.scalar and right.scalar)
