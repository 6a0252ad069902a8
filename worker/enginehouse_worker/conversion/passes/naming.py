"""Gives nodes and tensors of a converted graph the names of their layers."""

from __future__ import annotations

import re

import onnx

from enginehouse_worker.graphs.editing import EditableGraph
from enginehouse_worker.graphs.naming import unique_name

_COUNTER = re.compile(r"__\d+$")
_VARIABLE = re.compile(r"/(merged_input|ReadVariableOp(/resource)?)$")
_ROLES = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("weight", "weight"),
    "BatchNormalization": ("", "scale", "bias", "mean", "variance"),
    "Reshape": ("", "shape"),
}


def rename_by_layer(graph: EditableGraph) -> None:
    """Call each node by its layer and operator (`conv1/Conv`), and its output likewise; constants by what they are for
    whom (`conv1/weight`). In place.
    """
    interface = {*graph.input_names, *graph.output_names}
    taken = set(interface)
    tensors: dict[str, str] = {}
    for node in graph.nodes:
        node.name = unique_name(_layer_name(node), taken)
        for position, output in enumerate(node.output):
            if output and output not in interface:
                tensors[output] = node.name if position == 0 else f"{node.name}:{position}"
    for node in graph.nodes:
        roles = _ROLES.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name in graph.constants and name not in tensors:
                role = roles[position] if position < len(roles) else "constant"
                tensors[name] = unique_name(f"{node.name.rpartition('/')[0] or node.name}/{role}", taken)
    graph.rename_tensors(tensors)


def name_by_weights(graph: EditableGraph) -> None:
    """Name the nodes that the converter made anew (`Conv__12`) by the layer of their weight, in place.

    To be done while weights have the names of the frozen graph, maybe behind operators that reorder them.
    """
    producers = graph.producers()
    for node in graph.nodes:
        if "/" in node.name or _ROLES.get(node.op_type, ())[1:2] != ("weight",) or len(node.input) < 2:
            continue
        weight = node.input[1]
        while weight in producers and len(producers[weight].input):
            weight = producers[weight].input[0]
        layer = _VARIABLE.sub("", weight.split(":")[0]).rpartition("/")[0]
        if weight in graph.constants and layer:
            node.name = f"{layer}/{node.op_type}"


def name_nodes(graph: EditableGraph) -> None:
    """Give nodes that have no name, or another node's, one of their own: the operator and what it makes. In place."""
    taken: set[str] = set()
    for node in graph.nodes:
        wanted = node.name or f"{node.op_type}/{node.output[0]}"
        node.name = unique_name(wanted, taken)


def _layer_name(node: onnx.NodeProto) -> str:
    name = _COUNTER.sub("", node.name.split(":")[0])
    scope = name.rpartition("/")[0]
    scope = re.sub(r"/batchnorm(_\d+)?$", "", scope)
    return f"{scope or name}/{node.op_type}"
