"""Writes fully connected layers as Gemm."""

from __future__ import annotations

import onnx
from onnx import helper

from enginehouse_worker.graphs.editing import EditableGraph


def fuse_dense(graph: EditableGraph) -> None:
    """MatMul of a (batch, n) tensor with a constant, and the Add of a constant row to it, become one Gemm, in place."""
    inferred = graph.infer()
    readers = graph.readers()
    gone = []
    for position, node in enumerate(graph.nodes):
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        weight = graph.constants.get(node.input[1])
        shape = inferred.shapes.get(node.input[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) != 2 or node.input[0] in graph.constants:
            continue
        if inferred.types.get(node.input[0]) != onnx.TensorProto.FLOAT:
            continue
        add = _bias_add(graph, readers.get(node.output[0], []), node.output[0], weight.shape[1])
        inputs = [*node.input, add[1]] if add else list(node.input)
        output = add[0].output[0] if add else node.output[0]
        graph.nodes[position] = helper.make_node("Gemm", inputs, [output], name=node.name)
        if add:
            gone.append(add[0])
    graph.remove(gone)


def _bias_add(
    graph: EditableGraph, uses: list[tuple[onnx.NodeProto, int]], product: str, columns: int
) -> tuple[onnx.NodeProto, str] | None:
    """The Add that only adds a constant row to the product, and the constant's name."""
    if len(uses) != 1 or uses[0][1] < 0 or uses[0][0].op_type != "Add":
        return None
    node = uses[0][0]
    other = node.input[1 - uses[0][1]]
    value = graph.constants.get(other)
    return (node, other) if other != product and value is not None and value.shape == (columns,) else None
