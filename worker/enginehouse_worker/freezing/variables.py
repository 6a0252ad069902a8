"""Makes constants of a traced function's variables, the weights among them left where they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array

# Smaller ones are written into the graph.
_ELEMENTS = 1024
_READ = "ReadVariableOp"


def with_constants(function: Any) -> tuple[Any, dict[str, Array]] | None:
    """The GraphDef of a concrete function with constants for what it captures, and the values of the large ones.

    The large ones have a type and shape only in the graph; their values, by node, share the variables' memory.
    TensorFlow's convert_variables_to_constants_v2 gives the same graph, but copies all weights six times. It is needed
    for a function that calls others (loops, branches), for which this returns None.
    """
    import tensorflow as tf

    graph = function.graph.as_graph_def()
    nodes = {node.name: node for node in graph.node}
    variables = {id(variable.handle): variable for variable in function.graph.variables}
    captured: dict[str, Any] = {}
    for given, placeholder in function.graph.captures:
        if given.dtype in (tf.resource, tf.variant) and id(given) not in variables:
            return None
        captured[placeholder.op.name] = variables.get(id(given), given)
    handle = tf.resource.as_datatype_enum
    resources = {name for name in captured if nodes[name].attr["dtype"].type == handle}
    if graph.library.function or any(
        node.op != _READ and any(value.split(":")[0] in resources for value in node.input) for node in graph.node
    ):
        return None
    weights: dict[str, Array] = {}
    for name, given in captured.items():
        # Not `numpy()`, which copies.
        value = np.asarray(given.read_value() if name in resources else given)
        _make_constant(nodes[name], value, given.dtype, weights)
    for node in graph.node:
        if node.op == _READ and node.input[0].split(":")[0] in resources:
            dtype = node.attr["dtype"].type
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = dtype
        elif node.op == "Placeholder":
            node.attr.pop("_user_specified_name", None)
    return graph, weights


def _make_constant(node: Any, value: Array, dtype: Any, weights: dict[str, Array]) -> None:
    import tensorflow as tf

    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = dtype.as_datatype_enum
    tensor = node.attr["value"].tensor
    if value.size < _ELEMENTS or dtype == tf.string:
        tensor.CopyFrom(tf.make_tensor_proto(value, dtype, value.shape))
        return
    tensor.dtype = dtype.as_datatype_enum
    for size in value.shape:
        tensor.tensor_shape.dim.add(size=size)
    weights[node.name] = value
