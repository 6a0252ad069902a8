"""A quantized graph beside its FP32 graph: which tensors correspond, and each layer quantized alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.graphs.naming import unique_name
from enginehouse_worker.quantization.exclusion import layer_names
from enginehouse_worker.quantization.rules import MATRIX_OPERATORS, SHAPE_OPERATORS

_QUANTIZE = "QuantizeLinear"
_DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class LayerPair:
    """A layer in both graphs. `output`: its first output in the FP32 graph; `quantized_output`: the same value in the
    quantized one, before it is rounded. `quantized`: whether it reads rounded values."""

    number: int
    name: str
    op_type: str
    output: str
    quantized_output: str
    quantized: bool


def pair_layers(graph: GraphIndex, quantized: GraphIndex) -> tuple[LayerPair, ...]:
    """The layers to compare, in graph order: those that read rounded values, and matrix operators left in FP32.

    Raises:
        WorkerError: INVALID_ARGUMENT when the quantized graph is not made of the FP32 one.
    """
    names = layer_names(graph)
    pairs = []
    for number, node in enumerate(graph.nodes):
        if node.op_type in SHAPE_OPERATORS or not node.output or not graph.is_activation(node.output[0]):
            continue
        made = before_rounding(quantized, node.output[0])
        other = quantized.nodes[quantized.producer[made]] if made in quantized.producer else None
        if other is None or other.op_type != node.op_type or len(other.input) != len(node.input):
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"the quantized model was not made of this model: it has no {node.op_type} {names[number]!r}",
            )
        rounded = any(_is_made_by(quantized, tensor, _DEQUANTIZE) for tensor in other.input)
        if rounded or node.op_type in MATRIX_OPERATORS:
            pairs.append(LayerPair(number, names[number], node.op_type, node.output[0], made, rounded))
    return tuple(pairs)


def before_rounding(quantized: GraphIndex, tensor: str) -> str:
    """What a tensor was before its Q/DQ pair; the tensor itself when there is none behind it."""
    if _is_made_by(quantized, tensor, _DEQUANTIZE):
        source = quantized.nodes[quantized.producer[tensor]].input[0]
        if _is_made_by(quantized, source, _QUANTIZE):
            return str(quantized.nodes[quantized.producer[source]].input[0])
    return tensor


def with_layers_alone(
    graph: GraphIndex, quantized: GraphIndex, pairs: tuple[LayerPair, ...]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The FP32 model, and beside each quantized layer a copy with rounded inputs and weights that nobody reads.

    Returns:
        The model, whose outputs are each layer's and its copy's, and the copies' outputs by the layers'.
    """
    taken = {*graph.producer, *graph.constants, *graph.inputs, *graph.captured}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    copies: dict[str, str] = {}
    constants: dict[str, str] = {}

    def constant(name: str) -> str:
        if name not in constants:
            constants[name] = unique_name(f"{name}/alone", taken)
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(quantized.constants[name])
            tensor.name = constants[name]
        return constants[name]

    def step(node: onnx.NodeProto, source: str) -> str:
        copy = model.graph.node.add()
        copy.CopyFrom(node)
        copy.name = ""
        copy.input[:] = [source, *(constant(name) for name in node.input[1:])]
        copy.output[:] = [unique_name(f"{node.output[0]}/alone", taken)]
        return str(copy.output[0])

    def rounded(tensor: str, original: str) -> str:
        if not _is_made_by(quantized, tensor, _DEQUANTIZE):
            return original
        dequantize = quantized.nodes[quantized.producer[tensor]]
        source = dequantize.input[0]
        if _is_made_by(quantized, source, _QUANTIZE):
            return step(dequantize, step(quantized.nodes[quantized.producer[source]], original))
        return step(dequantize, constant(source))

    outputs = []
    for pair in pairs:
        outputs.append(pair.output)
        if pair.quantized:
            node, other = graph.nodes[pair.number], quantized.nodes[quantized.producer[pair.quantized_output]]
            inputs = [rounded(tensor, original) for tensor, original in zip(other.input, node.input, strict=True)]
            copy = model.graph.node.add()
            copy.CopyFrom(node)
            copy.name = ""
            copy.input[:] = inputs
            copy.output[:] = [unique_name(f"{name}/alone", taken) if name else "" for name in node.output]
            copies[pair.output] = str(copy.output[0])
            outputs.append(copies[pair.output])
    set_outputs(model, outputs)
    return model, copies


def set_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make those tensors the model's only outputs, in place."""
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _is_made_by(graph: GraphIndex, tensor: str, op_type: str) -> bool:
    return tensor in graph.producer and graph.nodes[graph.producer[tensor]].op_type == op_type
