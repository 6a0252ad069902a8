"""Whether two ONNX graphs are the same network, whatever their nodes are called. Pure.

A node's digest is made of its operator, its attributes with their defaults, the shapes of its weights and the digests
of its inputs: two graphs whose outputs have equal digests compute the same function of their weights. What exporters
write in different ways counts as equal: a zero Pad before a MaxPool, Squeeze for Flatten after a global pool, a Gemm's
transposed weight, the order of an Add's inputs, Identity.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_FLATTEN = ("Flatten", "Squeeze", "Reshape")
_COUNTED = ("Conv", "Gemm")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {"dilations": [1, 1], "group": 1, "pads": [0, 0, 0, 0], "strides": [1, 1]},
    "MaxPool": {"dilations": [1, 1], "pads": [0, 0, 0, 0], "strides": [1, 1], "ceil_mode": 0},
}
# Of attributes that say nothing about these networks' function, given the weights' shapes.
_IGNORED = {"auto_pad", "kernel_shape", "transA", "transB", "alpha", "beta", "storage_order", "axis"}


class Graph:
    """A graph's nodes by what they compute.

    Raises:
        ValueError: the graph has several outputs, or an input that nothing makes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._inputs = [value.name for value in model.graph.input if value.name not in self._weights]
        self._digests: dict[str, str] = {}
        if len(model.graph.output) != 1 or len(self._inputs) != 1:
            raise ValueError(f"expected a graph of one input and one output, not {self._inputs} and more")
        # Exporters write nodes in the order of computing, so this never recurses deep.
        for node in model.graph.node:
            self.digest(node.output[0])

    @property
    def output(self) -> str:
        return str(self.model.graph.output[0].name)

    def digest(self, tensor: str) -> str:
        """What makes a tensor, and of what."""
        if tensor not in self._digests:
            if tensor in self._inputs:
                self._digests[tensor] = "input"
            elif tensor not in self._makers:
                raise ValueError(f"nothing makes the tensor {tensor!r}")
            else:
                content = self._content(self._makers[tensor])
                self._digests[tensor] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._digests[tensor]

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node of a tensor, past Identity and a pool's padding; None for the graph's input."""
        node = self._makers.get(tensor)
        while node is not None and node.op_type in ("Identity", "Pad"):
            node = self._makers.get(node.input[0])
        return node

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that are computed; an Add's in an order that does not depend on the exporter."""
        found = [name for name in node.input if name and name not in self._weights]
        return sorted(found, key=self.digest) if node.op_type == "Add" else found

    def weights(self, node: onnx.NodeProto) -> list[onnx.TensorProto]:
        """The constants among a node's inputs."""
        return [self._weights[name] for name in node.input if name in self._weights]

    def counts(self) -> dict[str, int]:
        """How many nodes of each operator there are, as exported."""
        return dict(sorted(Counter(node.op_type for node in self.model.graph.node).items()))

    def parameters(self) -> int:
        """Elements of the weights and biases of convolutions and Gemms."""
        nodes = [node for node in self.model.graph.node if node.op_type in _COUNTED]
        return sum(int(np.prod(tensor.dims)) for node in nodes for tensor in self.weights(node))

    def layers(self) -> list[dict[str, Any]]:
        """Convolutions and Gemms in the order of the graph: operator, weight's shape, and attributes."""
        return [self._described(node) for node in self.model.graph.node if node.op_type in _COUNTED]

    def _described(self, node: onnx.NodeProto) -> dict[str, Any]:
        shapes = [list(tensor.dims) for tensor in self.weights(node)]
        if node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            shapes[0] = shapes[0] if transposed else shapes[0][::-1]
        return {"op": node.op_type, "weights": shapes, **self._attributes(node)}

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        found = {**_DEFAULTS.get(node.op_type, {}), **{k: v for k, v in given.items() if k not in _IGNORED}}
        if node.op_type == "MaxPool":
            found["kernel_shape"] = list(given["kernel_shape"])
            found["pads"] = self._padding(node.input[0], found["pads"])
        return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in found.items()}

    def _padding(self, tensor: str, pads: list[int]) -> list[int]:
        """A pool's padding with that of a Pad before it. After a ReLU padding by 0 is padding by nothing."""
        before = self._makers.get(tensor)
        if before is None or before.op_type != "Pad":
            return list(pads)
        source = self._makers.get(before.input[0])
        amounts = [int(v) for v in numpy_helper.to_array(self._weights[before.input[1]])]
        fill = [numpy_helper.to_array(self._weights[name]) for name in before.input[2:3] if name]
        if source is None or source.op_type != "Relu" or any(value.any() for value in fill):
            raise ValueError(f"{before.name!r} pads with something else than zeros after a ReLU")
        return [own + amount for own, amount in zip(pads, (*amounts[2:4], *amounts[6:8]), strict=True)]

    def _content(self, node: onnx.NodeProto) -> list[Any]:
        if node.op_type == "Identity" or (node.op_type == "Pad" and self._pools(node)):
            return [self.digest(node.input[0])]
        op = "Flatten" if node.op_type in _FLATTEN else node.op_type
        inner = self.digest_of_inputs(node)
        return [op, inner] if op == "Flatten" else [op, inner, self._described(node)]

    def digest_of_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The digests of what is computed, those of padding left out."""
        return [self.digest(self._unpadded(name)) for name in self.data_inputs(node)]

    def _unpadded(self, tensor: str) -> str:
        node = self._makers.get(tensor)
        while node is not None and (node.op_type == "Identity" or (node.op_type == "Pad" and self._pools(node))):
            tensor = node.input[0]
            node = self._makers.get(tensor)
        return tensor

    def _pools(self, pad: onnx.NodeProto) -> bool:
        readers = [node for node in self.model.graph.node if pad.output[0] in node.input]
        return bool(readers) and all(node.op_type == "MaxPool" for node in readers)


def pairs(left: Graph, right: Graph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The nodes of two equal graphs that compute the same.

    Raises:
        ValueError: the graphs differ; the first pair that does is named.
    """
    waiting, seen = [(left.output, right.output)], set()
    if left.digest(left.output) != right.digest(right.output):
        raise ValueError(f"the graphs differ: {json.dumps(difference(left, right))}")
    while waiting:
        ours, theirs = waiting.pop()
        one, other = left.maker(ours), right.maker(theirs)
        if one is None or other is None or one.output[0] in seen:
            continue
        seen.add(one.output[0])
        yield one, other
        waiting += zip(left.data_inputs(one), right.data_inputs(other), strict=True)


def difference(left: Graph, right: Graph) -> dict[str, Any]:
    """What differs: operators counted, parameters, and the layers that only one has."""
    ours, theirs = (Counter(json.dumps(layer, sort_keys=True) for layer in graph.layers()) for graph in (left, right))
    return {
        "same": left.digest(left.output) == right.digest(right.output),
        "operators": [left.counts(), right.counts()],
        "parameters": [left.parameters(), right.parameters()],
        "only_left": [json.loads(layer) for layer in (ours - theirs).elements()],
        "only_right": [json.loads(layer) for layer in (theirs - ours).elements()],
    }


def with_weights(target: Graph, source: Graph) -> onnx.ModelProto:
    """`target`'s graph with the weights of `source`, node by node.

    Raises:
        ValueError: the graphs differ.
    """
    replaced: dict[str, onnx.TensorProto] = {}
    for one, other in pairs(target, source):
        if one.op_type not in _COUNTED:
            continue
        for own, given in zip(target.weights(one), source.weights(other), strict=True):
            values = numpy_helper.to_array(given)
            if list(values.shape) != list(own.dims):
                values = np.ascontiguousarray(values.T)  # a Gemm's, transposed in one of them
            replaced[own.name] = numpy_helper.from_array(values, own.name)
    model = onnx.ModelProto()
    model.CopyFrom(target.model)
    kept = [replaced.get(tensor.name, tensor) for tensor in target.model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model
