"""Writes a placement into a graph: QuantizeLinear and DequantizeLinear nodes, quantized weights and biases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.graphs.index import GraphIndex, Reader
from enginehouse_worker.quantization.placement import Placement, Weight
from enginehouse_worker.quantization.rules import Dialect
from enginehouse_worker.quantization.scales import (
    ActivationScale,
    bias_floor,
    quantize_bias,
    quantize_weights,
    weight_scales,
)


def insert(
    graph: GraphIndex,
    placement: Placement,
    dialect: Dialect,
    scales: Mapping[str, ActivationScale],
    *,
    largest_weight: int = 127,
) -> onnx.ModelProto:
    """The quantized model, a new one. `scales` has every tensor of `placement.range_of`."""
    return _Insertion(graph, placement, dialect, scales, largest_weight).model()


class _Insertion:
    def __init__(
        self,
        graph: GraphIndex,
        placement: Placement,
        dialect: Dialect,
        scales: Mapping[str, ActivationScale],
        largest_weight: int,
    ) -> None:
        self._graph = graph
        self._placement = placement
        self._dialect = dialect
        self._scales = scales
        self._largest = largest_weight
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._replaced: dict[Reader, str] = {}
        self._weight_scales: dict[tuple[str, int | None], Array] = {}

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
                    copy.output[position] = f"{tensor}/float"
            self._nodes.append(copy)
            for before, tensor in zip(copy.output, node.output, strict=True):
                self._quantize_activation(tensor, before)
        return self._assemble()

    def _read(self, use: Reader, tensor: str) -> str:
        if use in self._replaced:
            return self._replaced[use]
        if use in self._placement.uses:
            return tensor if tensor in self._placement.outputs else f"{tensor}/dequantized"
        return f"{tensor}/float" if tensor in self._placement.outputs else tensor

    def _constant(self, name: str, value: Array) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _quantize_activation(self, tensor: str, before: str) -> None:
        if tensor not in self._placement.range_of:
            return
        scale = self._scales[tensor]
        zero_point = np.array(scale.zero_point, np.int8 if scale.symmetric else np.uint8)
        parameters = [
            self._constant(f"{tensor}/scale", np.array(scale.scale, np.float32)),
            self._constant(f"{tensor}/zero_point", zero_point),
        ]
        after = tensor if tensor in self._placement.outputs else f"{tensor}/dequantized"
        self._pair(tensor, before, after, parameters, {})

    def _pair(self, name: str, before: str, after: str, parameters: list[str], attributes: dict[str, int]) -> None:
        quantized = f"{name}/quantized"
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
            self._replaced[weight.use] = f"{name}/dequantized"
            if key not in self._weight_scales:
                value = numpy_helper.to_array(self._graph.constants[weight.tensor])
                scales = weight_scales(value, weight.axis, largest=self._largest, smallest=floors.get(key))
                self._weight_scales[key] = scales
                self._write_weight(weight, name, value, scales)

    def _write_weight(self, weight: Weight, name: str, value: Array, scales: Array) -> None:
        attributes = {} if weight.axis is None else {"axis": weight.axis}
        parameters = [
            self._constant(f"{name}/scale", scales),
            self._constant(f"{name}/zero_point", np.zeros(scales.shape, np.int8)),
        ]
        if not self._dialect.integer_weights:
            self._pair(name, weight.tensor, f"{name}/dequantized", parameters, attributes)
            return
        quantized = quantize_weights(value, scales, weight.axis, self._largest)
        source = self._constant(f"{name}/quantized", quantized)
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [source, *parameters],
                [f"{name}/dequantized"],
                name=f"{name}/DequantizeLinear",
                **attributes,
            )
        )

    def _bias_floors(self) -> dict[tuple[str, int | None], Array]:
        floors: dict[tuple[str, int | None], Array] = {}
        keys = {weight.use.node: (weight.tensor, weight.axis) for weight in self._placement.weights}
        for use in self._placement.biases:
            node = self._graph.nodes[use.node]
            bias = numpy_helper.to_array(self._graph.constants[node.input[2]])
            floor = bias_floor(bias, self._scales[node.input[0]].scale)
            key = keys[use.node]
            floors[key] = np.maximum(floors[key], floor) if key in floors else floor
        return floors

    def _quantize_biases(self) -> None:
        keys = {weight.use.node: (weight.tensor, weight.axis) for weight in self._placement.weights}
        for use in self._placement.biases:
            node = self._graph.nodes[use.node]
            bias = numpy_helper.to_array(self._graph.constants[node.input[2]])
            # The node's name is in the bias's: its scale is that of this node's input and weights.
            name = f"{node.name or node.output[0]}/bias"
            scales = np.float32(self._scales[node.input[0]].scale) * self._weight_scales[keys[use.node]]
            parameters = [
                self._constant(f"{name}/quantized", quantize_bias(bias, scales)),
                self._constant(f"{name}/scale", scales),
                self._constant(f"{name}/zero_point", np.zeros(scales.shape, np.int32)),
            ]
            self._nodes.append(
                helper.make_node(
                    "DequantizeLinear", parameters, [f"{name}/dequantized"], name=f"{name}/DequantizeLinear", axis=0
                )
            )
            self._replaced[use] = f"{name}/dequantized"

    def _assemble(self) -> onnx.ModelProto:
        source = self._graph.model
        model = onnx.ModelProto()
        model.ir_version = source.ir_version
        model.producer_name = "enginehouse"
        model.opset_import.extend(source.opset_import)
        model.metadata_props.extend(source.metadata_props)
        model.functions.extend(source.functions)
        model.graph.name = source.graph.name
        model.graph.input.extend(source.graph.input)
        model.graph.output.extend(source.graph.output)
        model.graph.node.extend(self._nodes)
        read = {tensor for node in self._nodes for tensor in node.input} | set(self._graph.outputs)
        model.graph.initializer.extend(t for t in self._graph.constants.values() if t.name in read)
        model.graph.initializer.extend(self._constants.values())
        return model
