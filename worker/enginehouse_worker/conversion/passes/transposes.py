"""Removes transpositions: into each other, into a Reshape, and into the weights of a fully connected layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul

import numpy as np
import onnx

from enginehouse_worker.graphs.editing import EditableGraph, Inferred, attributes, set_attribute
from enginehouse_worker.graphs.naming import unique_name


def remove_transposes(graph: EditableGraph) -> None:
    """Merge chains of Transpose and of Reshape; drop a Transpose that moves only dimensions of size 1 before a Reshape;
    drop one before a flattening whose readers are all fully connected, by permuting their weights' rows. In place.
    """
    inferred = graph.infer()
    producers = graph.producers()
    readers = graph.readers()
    taken = graph.names()
    for node in graph.nodes:
        before = producers.get(node.input[0]) if node.input else None
        if before is None or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Transpose" and before.op_type == "Transpose":
            first, second = _permutation(before), _permutation(node)
            if first and second and len(first) == len(second):
                set_attribute(node, "perm", [first[axis] for axis in second])
                node.input[0] = before.input[0]
        elif node.op_type in ("Reshape", "Flatten"):
            if before.op_type in ("Reshape", "Flatten") and _absolute(graph, node):
                node.input[0] = before.input[0]
                before = producers.get(node.input[0])
            if before is not None and before.op_type == "Transpose":
                _through_reshape(graph, before, node, inferred, readers, taken)
    graph.drop_unread()


def _through_reshape(
    graph: EditableGraph,
    transpose: onnx.NodeProto,
    reshape: onnx.NodeProto,
    inferred: Inferred,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    taken: set[str],
) -> None:
    permutation = _permutation(transpose)
    shape = inferred.shapes.get(transpose.input[0])
    if not permutation or shape is None or len(permutation) != len(shape):
        return
    order = [axis for axis in permutation if shape[axis] != 1]
    if order == sorted(order) and _absolute(graph, reshape):
        # No value moves.
        reshape.input[0] = transpose.input[0]
        return
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    rows = reduce(mul, sizes, 1)
    flat = inferred.shapes.get(reshape.output[0])
    if permutation[0] != 0 or len(sizes) != len(shape) - 1 or flat is None or len(flat) != 2 or flat[1] != rows:
        return
    if not _keeps_samples(graph, reshape, rows):
        return
    uses = readers.get(reshape.output[0], [])
    if not uses or not all(_is_dense(graph, node, position, rows) for node, position in uses):
        return
    for node, _ in uses:
        _permute_rows(graph, node, sizes, permutation, readers, taken)
    reshape.input[0] = transpose.input[0]


def _permute_rows(
    graph: EditableGraph,
    node: onnx.NodeProto,
    sizes: Sequence[int],
    permutation: Sequence[int],
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    taken: set[str],
) -> None:
    """Reorder a weight's rows from the transposed order to the original one."""
    turned = node.op_type == "Gemm" and attributes(node).get("transB", 0)
    weight = graph.constants[node.input[1]]
    weight = weight.T if turned else weight
    moved = [axis - 1 for axis in permutation[1:]]
    blocks = weight.reshape([*(sizes[axis] for axis in moved), weight.shape[1]])
    back = [moved.index(axis) for axis in range(len(moved))]
    rows = blocks.transpose([*back, len(moved)]).reshape(weight.shape)
    name = node.input[1]
    if len(readers.get(name, ())) > 1:
        readers[name] = [use for use in readers[name] if use[0] is not node]
        name = unique_name(f"{node.output[0]}/weight", taken)
        node.input[1] = name
    graph.constants[name] = np.ascontiguousarray(rows.T if turned else rows)


def _is_dense(graph: EditableGraph, node: onnx.NodeProto, position: int, rows: int) -> bool:
    """Whether a node multiplies a (batch, rows) tensor by a constant (rows, columns) matrix."""
    if position != 0 or node.op_type not in ("Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return False
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2:
        return False
    options = attributes(node)
    if node.op_type == "Gemm" and options.get("transA", 0):
        return False
    return bool(weight.shape[1 if node.op_type == "Gemm" and options.get("transB", 0) else 0] == rows)


def _keeps_samples(graph: EditableGraph, node: onnx.NodeProto, rows: int) -> bool:
    """Whether a Reshape or Flatten to rank 2 leaves dimension 0 as it is."""
    if node.op_type == "Flatten":
        return bool(attributes(node).get("axis", 1) == 1)
    target = graph.constants.get(node.input[1])
    if target is None or target.shape != (2,):
        return False
    return bool(target[1] == rows or (target[0] == 0 and target[1] == -1))


def _absolute(graph: EditableGraph, node: onnx.NodeProto) -> bool:
    """Whether a Reshape's result depends only on the order of its input's values, not on its shape."""
    if node.op_type != "Reshape":
        return False
    target = graph.constants.get(node.input[1])
    return target is not None and bool((target != 0).all())


def _permutation(node: onnx.NodeProto) -> list[int]:
    return [int(axis) for axis in attributes(node).get("perm", ())]
