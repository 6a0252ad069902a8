"""Keeps weights out of the conversion: they become placeholders before it and constants of the ONNX graph after it.

tf2onnx 1.17 and TensorFlow's graph optimizer copy every constant many times: VGG-16 (550 MB of weights) took 9.9 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginehouse_worker.backends.base import Array

# Smaller constants (shapes, biases, batch norms) take part in the conversion: its patterns look at them.
_ELEMENTS = 256
# Operators that are converted without looking at this input's values.
_WEIGHT_INPUT = {
    "Conv2D": 1,
    "Conv3D": 1,
    "DepthwiseConv2dNative": 1,
    "Conv2DBackpropInput": 1,
    "MatMul": 1,
    "BatchMatMulV2": 1,
    "GatherV2": 0,
}


@dataclass(frozen=True)
class Stripped:
    """`graph` is a GraphDef in which the constants named in `weights` are placeholders of their type and shape."""

    graph: Any
    weights: dict[str, Array]


def strip_weights(graph: Any) -> Stripped:
    """Take large weights out of a GraphDef; the given one is used up."""
    import tensorflow as tf

    names = _weights(graph)
    weights: dict[str, Array] = {}
    light = tf.compat.v1.GraphDef()
    light.versions.CopyFrom(graph.versions)
    light.library.CopyFrom(graph.library)
    for node in graph.node:
        if node.name not in names:
            light.node.add().CopyFrom(node)
            continue
        tensor = node.attr["value"].tensor
        weights[node.name] = tf.make_ndarray(tensor)
        placeholder = light.node.add(name=node.name, op="Placeholder")
        placeholder.attr["dtype"].type = tensor.dtype
        placeholder.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
    return Stripped(light, weights)


def _weights(graph: Any) -> set[str]:
    """The large constants that only weight inputs read, straight or through Identity nodes."""
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for position, value in enumerate(node.input):
            readers.setdefault(value.removeprefix("^").split(":")[0], []).append((node, position))

    def only_weight(name: str) -> bool:
        uses = readers.get(name, [])
        return bool(uses) and all(
            only_weight(node.name) if node.op == "Identity" else _WEIGHT_INPUT.get(node.op) == position
            for node, position in uses
        )

    return {
        node.name
        for node in graph.node
        if node.op == "Const" and _elements(node.attr["value"].tensor) >= _ELEMENTS and only_weight(node.name)
    }


def _elements(tensor: Any) -> int:
    count = 1
    for dimension in tensor.tensor_shape.dim:
        count *= dimension.size
    return count
