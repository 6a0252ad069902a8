"""Writes a placement into a graph: QuantizeLinear and DequantizeLinear nodes, quantized weights and biases."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.graphs.index import GraphIndex, Reader
from enginehouse_worker.graphs.naming import unique_name
from enginehouse_worker.quantization.placement import Placement, Weight
from enginehouse_worker.quantization.rules import Dialect
from enginehouse_worker.quantization.scales import (
    ActivationScale,
    bias_floor,
    quantize_bias,
    quantize_weights,
    weight_scales,
)

# The first of ONNX's own that have FP8.
FP8_OPSET, FP8_IR_VERSION = 19, 9


def insert(
    graph: GraphIndex,
    placement: Placement,
    dialect: Dialect,
    scales: Mapping[str, ActivationScale],
    *,
    largest_weight: float = 127,
) -> onnx.ModelProto:
    """The quantized model, a new one. `scales` has every tensor of `placement.range_of`.

    FP8 takes a graph of opset 19 or later, where ONNX has it.
    """
    return _Insertion(graph, placement, dialect, scales, largest_weight).model()


class _Insertion:
    def __init__(
        self,
        graph: GraphIndex,
        placement: Placement,
        dialect: Dialect,
        scales: Mapping[str, ActivationScale],
        largest_weight: float,
    ) -> None:
        self._graph = graph
        self._placement = placement
        self._dialect = dialect
        self._scales = scales
        self._largest = largest_weight
        self._symmetric_type = np.dtype(ml_dtypes.float8_e4m3fn if dialect.format == "fp8" else np.int8)
        self._taken = {*graph.producer, *graph.constants, *graph.inputs, *graph.captured}
        self._names: dict[str, str] = {}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._replaced: dict[Reader, str] = {}
        self._weight_scales: dict[tuple[str, int | None], Array] = {}
        self._weights = {(w.use.node, w.use.position): (w.tensor, w.axis) for w in placement.weights}

    def model(self) -> onnx.ModelProto:
        self._quantize_weights()
        self._quantize_biases()
        for name in self._graph.inputs:
            self._quantize_activation(name, name)
        for number, node in enumerate(self._graph.nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, tensor in enumerate(node.input):
                copy.input[position] = self._read(Reader(number, position), tensor)
            for position, tensor in enumerate(node.output):
                if tensor in self._placement.outputs:
                    copy.output[position] = self._name(f"{tensor}/float")
            self._nodes.append(copy)
            for before, tensor in zip(copy.output, node.output, strict=True):
                self._quantize_activation(tensor, before)
        return self._assemble()

    def _read(self, use: Reader, tensor: str) -> str:
        if use in self._replaced:
            return self._replaced[use]
        if use in self._placement.uses:
            return tensor if tensor in self._placement.outputs else self._name(f"{tensor}/dequantized")
        return self._name(f"{tensor}/float") if tensor in self._placement.outputs else tensor

    def _name(self, wanted: str) -> str:
        """The name of a new tensor: `wanted`, or that and a number where the model has such a tensor already."""
        if wanted not in self._names:
            self._names[wanted] = unique_name(wanted, self._taken)
        return self._names[wanted]

    def _constant(self, wanted: str, value: Array) -> str:
        name = self._name(wanted)
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _quantize_activation(self, tensor: str, before: str) -> None:
        if tensor not in self._placement.range_of:
            return
        scale = self._scales[tensor]
        zero_point = np.array(scale.zero_point, self._symmetric_type if scale.symmetric else np.uint8)
        parameters = [
            self._constant(f"{tensor}/scale", np.array(scale.scale, np.float32)),
            self._constant(f"{tensor}/zero_point", zero_point),
        ]
        after = tensor if tensor in self._placement.outputs else self._name(f"{tensor}/dequantized")
        self._pair(tensor, before, after, parameters, {})

    def _pair(self, name: str, before: str, after: str, parameters: list[str], attributes: dict[str, int]) -> None:
        quantized = self._name(f"{name}/quantized")
        for op_type, source, result in (
            ("QuantizeLinear", before, quantized),
            ("DequantizeLinear", quantized, after),
        ):
            self._nodes.append(
                helper.make_node(op_type, [source, *parameters], [result], name=f"{name}/{op_type}", **attributes)
            )

    def _quantize_weights(self) -> None:
        floors = self._bias_floors()
        for weight in self._placement.weights:
            key = (weight.tensor, weight.axis)
            # One weight may serve nodes that want different axes, and is then stored once for each.
            name = weight.tensor if weight.axis is None else f"{weight.tensor}/axis{weight.axis}"
            self._replaced[weight.use] = self._name(f"{name}/dequantized")
            if key not in self._weight_scales:
                value = numpy_helper.to_array(self._graph.constants[weight.tensor])
                scales = weight_scales(value, weight.axis, largest=self._largest, smallest=floors.get(key))
                self._weight_scales[key] = scales
                self._write_weight(weight, name, value, scales)

    def _write_weight(self, weight: Weight, name: str, value: Array, scales: Array) -> None:
        attributes = {} if weight.axis is None else {"axis": weight.axis}
        parameters = [
            self._constant(f"{name}/scale", scales),
            self._constant(f"{name}/zero_point", np.zeros(scales.shape, self._symmetric_type)),
        ]
        if not self._dialect.integer_weights:
            self._pair(name, weight.tensor, self._name(f"{name}/dequantized"), parameters, attributes)
            return
        quantized = quantize_weights(value, scales, weight.axis, self._largest)
        source = self._constant(f"{name}/quantized", quantized)
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [source, *parameters],
                [self._name(f"{name}/dequantized")],
                name=f"{name}/DequantizeLinear",
                **attributes,
            )
        )

    def _bias_floors(self) -> dict[tuple[str, int | None], Array]:
        floors: dict[tuple[str, int | None], Array] = {}
        for use in self._placement.biases:
            if (key := self._weights.get((use.node, 1))) is not None:
                bias = numpy_helper.to_array(self._graph.constants[self._graph.nodes[use.node].input[2]])
                floor = bias_floor(bias, float(self._operand_scale(use.node, 0)) * _alpha(self._graph.nodes[use.node]))
                if key[1] is None:
                    floor = floor.max(initial=0.0)
                floors[key] = np.maximum(floors[key], floor) if key in floors else floor
        return floors

    def _operand_scale(self, number: int, position: int) -> Array:
        """The scale of an operand of a quantized operator: () or one for each output channel."""
        key = self._weights.get((number, position))
        if key is not None:
            return self._weight_scales[key]
        return np.array(self._scales[self._graph.nodes[number].input[position]].scale, np.float32)

    def _quantize_biases(self) -> None:
        for use in self._placement.biases:
            node = self._graph.nodes[use.node]
            bias = numpy_helper.to_array(self._graph.constants[node.input[2]])
            # Named after what the node makes: its scale is that of this node's input and weights.
            name = f"{node.output[0]}/bias"
            products = self._operand_scale(use.node, 0) * self._operand_scale(use.node, 1)
            scales = np.broadcast_to(np.float32(_alpha(node)) * products, bias.shape)
            parameters = [
                self._constant(f"{name}/quantized", quantize_bias(bias, scales)),
                self._constant(f"{name}/scale", scales),
                self._constant(f"{name}/zero_point", np.zeros(scales.shape, np.int32)),
            ]
            result = self._name(f"{name}/dequantized")
            self._nodes.append(
                helper.make_node("DequantizeLinear", parameters, [result], name=f"{name}/DequantizeLinear", axis=0)
            )
            self._replaced[use] = result

    def _assemble(self) -> onnx.ModelProto:
        source = self._graph.model
        model = onnx.ModelProto()
        model.ir_version = (
            max(source.ir_version, FP8_IR_VERSION) if self._dialect.format == "fp8" else source.ir_version
        )
        model.producer_name = "enginehouse"
        model.opset_import.extend(source.opset_import)
        model.metadata_props.extend(source.metadata_props)
        model.functions.extend(source.functions)
        model.graph.name = source.graph.name
        model.graph.input.extend(source.graph.input)
        model.graph.output.extend(source.graph.output)
        model.graph.node.extend(self._nodes)
        read = {tensor for node in self._nodes for tensor in node.input} | {*self._graph.outputs, *self._graph.captured}
        model.graph.initializer.extend(t for t in self._graph.constants.values() if t.name in read)
        model.graph.initializer.extend(self._constants.values())
        return model


def _alpha(node: onnx.NodeProto) -> float:
    """What a Gemm multiplies its product with; its integer bias is in units of the multiplied product."""
    return next((float(a.f) for a in node.attribute if a.name == "alpha" and node.op_type == "Gemm"), 1.0)
