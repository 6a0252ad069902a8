"""What the converter leaves of TensorFlow's own operators: written with ONNX's where they can be, refused elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph
from enginehouse_worker.graphs.naming import unique_name

_SHOWN = 4
# XLA's marks on a function keep it from being written out where it is called, as Keras calls grouped convolutions.
_COMPILED = ("_XlaMustCompile", "_noinline")


def replace_operators(graph: EditableGraph) -> None:
    """Write Erfc(x), which Keras's GELU has, as 1 - Erf(x), in place."""
    taken = graph.names()
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type != "Erfc":
            nodes.append(node)
            continue
        one, erf = (unique_name(f"{node.output[0]}/{role}", taken) for role in ("one", "erf"))
        graph.constants[one] = np.array(1.0, np.float32)
        nodes.append(helper.make_node("Erf", node.input, [erf], name=f"{node.name}/Erf"))
        nodes.append(helper.make_node("Sub", [one, erf], node.output, name=node.name))
    graph.nodes[:] = nodes


def check_operators(graph: EditableGraph) -> None:
    """Raise for operators that ONNX does not have.

    Raises:
        WorkerError: INVALID_ARGUMENT naming each operator and a node of it.
    """
    unknown: dict[str, str] = {}
    for node in graph.nodes:
        if not onnx.defs.has(node.op_type, domain=node.domain):
            unknown.setdefault(node.op_type, node.name)
    if unknown:
        named = ", ".join(f"{op!r} (node {name!r})" for op, name in list(unknown.items())[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model cannot be expressed in ONNX, which lacks these operators of TensorFlow: {named}{more}; replace "
            "the layers that use them",
        )


def allow_inlining(graph_def: Any) -> None:
    """Take XLA's marks off the calls and functions of a GraphDef, in place."""
    nodes = [*graph_def.node]
    for function in graph_def.library.function:
        nodes += function.node_def
    for marked in (*graph_def.library.function, *nodes):
        for mark in _COMPILED:
            marked.attr.pop(mark, None)
