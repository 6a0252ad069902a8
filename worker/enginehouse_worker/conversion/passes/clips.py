"""Writes a Clip of the graph's input as Max and Min."""

from __future__ import annotations

import onnx
from onnx import helper

from enginehouse_worker.graphs.editing import EditableGraph
from enginehouse_worker.graphs.naming import unique_name


def split_input_clips(graph: EditableGraph) -> None:
    """Make each Clip that reads an input of the graph a Max and a Min, in place.

    ONNX Runtime 1.23 cannot load a graph where such a Clip stands before a QuantizeLinear: it takes the Clip away, and
    expects a node before it.
    """
    inputs = set(graph.input_names)
    taken = graph.names()
    used = {node.name for node in graph.nodes}
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        bounds = [(op, name) for op, name in zip(("Max", "Min"), node.input[1:], strict=False) if name]
        if node.op_type != "Clip" or node.input[0] not in inputs or not bounds:
            kept.append(node)
            continue
        source = node.input[0]
        for number, (operator, bound) in enumerate(bounds, 1):
            last = number == len(bounds)
            output = node.output[0] if last else unique_name(f"{node.output[0]}/{operator}", taken)
            name = node.name if last else unique_name(f"{node.name or node.output[0]}/{operator}", used)
            kept.append(helper.make_node(operator, [source, bound], [output], name=name))
            source = output
    graph.nodes[:] = kept
