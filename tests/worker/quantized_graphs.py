"""Reading a quantized graph beside the one it was made from."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from enginehouse_worker.graphs.index import GraphIndex

PAIR = ("QuantizeLinear", "DequantizeLinear")


class QuantizedGraph:
    """A quantized model and the index of its original, whose nodes it has in the same order."""

    def __init__(self, original: GraphIndex, model: onnx.ModelProto) -> None:
        self.original = original
        self.model = model
        self.producers = {output: node for node in model.graph.node for output in node.output}
        kept = [node for node in model.graph.node if node.op_type not in PAIR]
        assert [node.op_type for node in kept] == [node.op_type for node in original.nodes]
        self._kept = kept
        self._names = {
            found: expected
            for node, before in zip(kept, original.nodes, strict=True)
            for found, expected in zip(node.output, before.output, strict=True)
        }

    def pairs_of_nodes(self) -> Iterator[tuple[int, onnx.NodeProto]]:
        """Every node that is no Q or DQ, with its number in the original."""
        yield from enumerate(self._kept)

    def original_name(self, tensor: str) -> str:
        """What a computed tensor was called."""
        return self._names.get(tensor, tensor)

    def behind_pair(self, tensor: str) -> str | None:
        """The tensor behind Q and DQ, or the integer constant behind DQ, or None when `tensor` is not dequantized."""
        node = self.producers.get(tensor)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        before = self.producers.get(node.input[0])
        if before is None:
            return str(node.input[0])
        assert before.op_type == "QuantizeLinear"
        assert before.input[1:] == node.input[1:], "both halves of a pair have one scale"
        return str(before.input[0])


def bypassed(original: GraphIndex, model: onnx.ModelProto) -> onnx.ModelProto:
    """The quantized model without its pairs, FP32 weights and biases back in their places."""
    quantized = QuantizedGraph(original, model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    del result.graph.initializer[:]
    result.graph.initializer.extend(original.constants.values())
    for number, node in quantized.pairs_of_nodes():
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for position, tensor in enumerate(node.input):
            source = quantized.behind_pair(tensor)
            if source is not None:
                computed = source in quantized.producers or source in original.inputs
                copy.input[position] = source if computed else original.nodes[number].input[position]
        result.graph.node.append(copy)
    for output in model.graph.output:
        source = quantized.behind_pair(output.name)
        if source is not None:
            result.graph.node.append(onnx.helper.make_node("Identity", [source], [output.name]))
    return result
