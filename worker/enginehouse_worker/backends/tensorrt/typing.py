"""Gives an FP32 graph 16-bit types: what a strongly typed network computes in is the graph's own.

A pass of ours and no library's. The converters of onnxconverter-common and onnxruntime turn everything into FP16 but a
list of operators, so an operator that nobody thought of becomes FP16; they put Casts between a DequantizeLinear and the
convolution that it should fuse with, or round its scale to zero; they cut weights to FP16's range, know no BF16, and
leave the opset as it is although Q/DQ takes FP16 only from 19 on. Here a list says what may have 16 bits, and all else
stays FP32, which is always right.

A tensor has the type that its producer gives it. A reader that wants the other one gets a Cast, made once. Of a
DequantizeLinear it gets another DequantizeLinear, so that nothing stands between it and what it fuses with. Inputs,
outputs, what subgraphs read, and arithmetic on shapes keep FP32. So does what is subtracted from pixels, since 16 bits
round a mean such as 123.7 by up to 0.25; the Transpose after it, which moves memory, has 16 bits.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

from enginehouse_worker.backends.base import Array
from enginehouse_worker.backends.tensorrt.folding import fold_weights
from enginehouse_worker.backends.tensorrt.opsets import raise_opset
from enginehouse_worker.graphs.editing import SHAPE_CONSTANT_ELEMENTS, EditableGraph, subgraph_reads, subgraphs
from enginehouse_worker.graphs.naming import unique_name

# fmt: off
# Computed in 16 bits: products and sums that kernels accumulate in FP32, and what keeps values within their range.
COMPUTES = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Conv", "ConvTranspose", "Div", "Elu", "Erf", "Gelu",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "Max",
        "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Sub", "Sum", "Tanh",
        "ThresholdedRelu",
    }
)
# Move values without looking at them: they take the type that comes.
MOVES = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)
# What normalizes the pixels that a Cast of 8-bit integers gives. It becomes one kernel with the Casts at its ends.
NORMALIZES = frozenset({"Add", "Div", "Gather", "Mul", "Sub"})
# fmt: on
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FP16_MAX, FP16_SMALLEST_NORMAL = 65504.0, 2.0**-14
# Q/DQ takes FP16 from opset 19 on; convolutions and poolings take BF16 from 22 on.
QUANTIZED_FP16_OPSET, BF16_OPSET = 19, 22
_FLOAT = onnx.TensorProto.FLOAT
_BYTES = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


def to_half(graph: EditableGraph, precision: str) -> None:
    """Type an FP32 graph for a precision, in place.

    Args:
        precision: FP16 or BF16; INT8 and FP8 are FP16 around the Q/DQ that the graph has.

    Raises:
        WorkerError: INVALID_ARGUMENT when the graph's opset lacks the types and ONNX cannot convert it.
    """
    if precision == "BF16":
        raise_opset(graph, BF16_OPSET)
    elif any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in graph.nodes):
        fold_weights(graph)
        raise_opset(graph, QUANTIZED_FP16_OPSET)
    _Typing(graph, bfloat=precision == "BF16").apply()
    graph.drop_unread()


def holds(value: Array) -> bool:
    """Whether FP16 holds a constant: nothing beyond its range, and the greatest value not among its subnormals.

    The error of a small value is small beside the greatest. Infinities stay what they are.
    """
    greatest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
    return greatest == 0.0 or FP16_SMALLEST_NORMAL <= greatest <= FP16_MAX


def holds_scale(scale: Array) -> bool:
    """Whether FP16 is as good as FP32 for every scale: normal numbers, or those that are FP16 values already."""
    with np.errstate(over="ignore"):
        exact = scale.astype(np.float16).astype(np.float32) == scale
    return bool(np.all(exact | ((scale >= FP16_SMALLEST_NORMAL) & (scale <= FP16_MAX))))


class _Typing:
    """One pass: first each node's type, then who wants which version of a tensor, then the nodes anew."""

    def __init__(self, graph: EditableGraph, *, bfloat: bool) -> None:
        self._graph = graph
        self._bfloat = bfloat
        self._type = onnx.TensorProto.BFLOAT16 if bfloat else onnx.TensorProto.FLOAT16
        self._numpy = np.dtype(ml_dtypes.bfloat16 if bfloat else np.float16)
        self._types = graph.infer().types
        self._taken = graph.names()
        self._half: set[str] = set()  # FP32 tensors that their producers make in 16 bits
        self._values: set[str] = set(graph.input_names)  # what depends on more than shapes
        self._pixels: set[str] = set()
        self._scales: dict[str, bool] = {}  # outputs of DequantizeLinear: whether 16 bits hold the scale
        self._wanted: set[tuple[str, bool]] = set()
        self._names: dict[str, str] = {}

    def apply(self) -> None:
        halves = [self._decide(node) for node in self._graph.nodes]
        self._want(halves)
        nodes = list(self._graph.nodes)
        self._graph.nodes.clear()
        for name in self._graph.input_names:
            self._convert(name)
        for name in [name for name in self._graph.constants if (name, True) in self._wanted]:
            self._graph.constants[self._name(name)] = self._graph.constants[name].astype(self._numpy)
        for node, half in zip(nodes, halves, strict=True):
            if node.op_type == DEQUANTIZE and node.output[0] in self._scales:
                self._dequantize(node)
            else:
                self._emit(node, half)

    # Which nodes are 16 bits

    def _decide(self, node: onnx.NodeProto) -> bool:
        inputs, outputs = [name for name in node.input if name], [name for name in node.output if name]
        computed = [name for name in inputs if name not in self._graph.constants]
        if node.op_type not in ("Shape", "Size") and any(n in self._values for n in (*computed, *subgraph_reads(node))):
            self._values.update(outputs)
        if node.op_type == DEQUANTIZE:
            scale = self._graph.constants.get(node.input[1])
            if scale is not None and self._is_float(node.output[0]):
                self._scales[node.output[0]] = self._bfloat or holds_scale(scale)
                self._half.update(outputs if self._scales[node.output[0]] else ())
            return False
        if self._is_pixels(node, computed):
            self._pixels.update(outputs)
            return False
        half = self._may_be_half(node, inputs, outputs, computed)
        if half:
            self._half.update(name for name in outputs if self._is_float(name))
        return half

    def _may_be_half(self, node: onnx.NodeProto, inputs: list[str], outputs: list[str], computed: list[str]) -> bool:
        if node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
            return False
        if any(name not in self._types for name in (*inputs, *outputs)):
            return False
        if node.op_type == QUANTIZE:
            scale = self._graph.constants.get(node.input[1])
            return node.input[0] in self._half and scale is not None and (self._bfloat or holds_scale(scale))
        floats = [name for name in inputs if self._is_float(name)]
        if not floats or not any(name in self._values for name in computed):
            return False
        if not all(self._holds(name) for name in floats):
            return False
        if node.op_type in COMPUTES:
            # A square leaves FP16's range at 256, and is the beginning of a variance.
            return not (node.op_type == "Mul" and node.input[0] == node.input[1])
        if node.op_type not in MOVES:
            return False
        # A large table of constants is an embedding's.
        table = node.op_type == "Gather" and self._elements(node.input[0]) > SHAPE_CONSTANT_ELEMENTS
        return table or any(name in self._half or name in self._pixels for name in floats)

    def _is_pixels(self, node: onnx.NodeProto, computed: list[str]) -> bool:
        if node.op_type == "Cast":
            return self._types.get(node.input[0]) in _BYTES and self._is_float(node.output[0])
        return node.op_type in NORMALIZES and len(computed) == 1 and computed[0] in self._pixels

    def _is_float(self, name: str) -> bool:
        return bool(self._types.get(name) == _FLOAT)

    def _elements(self, name: str) -> int:
        value = self._graph.constants.get(name)
        return 0 if value is None else int(value.size)

    def _holds(self, name: str) -> bool:
        if self._bfloat:
            return True
        value = self._graph.constants.get(name)
        return self._scales.get(name, True) if value is None else holds(value)

    # Who wants what

    def _want(self, halves: list[bool]) -> None:
        self._wanted.update((name, False) for name in self._graph.output_names)
        for node, half in zip(self._graph.nodes, halves, strict=True):
            self._wanted.update((name, False) for name in subgraph_reads(node))
            if node.op_type == DEQUANTIZE and node.output[0] in self._scales:
                continue
            self._wanted.update((name, half) for name in node.input if self._is_float(name))

    # The nodes anew

    def _emit(self, node: onnx.NodeProto, half: bool) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        if half:
            made.input[:] = [self._name(name) if self._is_float(name) else name for name in node.input]
            made.output[:] = [self._name(name) if self._is_float(name) else name for name in node.output]
        self._graph.nodes.append(made)
        for name in node.output:
            self._convert(name)

    def _convert(self, name: str) -> None:
        """Make the version of a new tensor that its producer did not make, where somebody wants it."""
        if not self._is_float(name):
            return
        half = name in self._half
        if (name, not half) in self._wanted:
            source, result = (self._name(name), name) if half else (name, self._name(name))
            self._graph.nodes.append(
                helper.make_node("Cast", [source], [result], name=f"{name}/Cast", to=_FLOAT if half else self._type)
            )

    def _dequantize(self, node: onnx.NodeProto) -> None:
        name = node.output[0]
        for half in (False, True):
            if (name, half) not in self._wanted:
                continue
            made = onnx.NodeProto()
            made.CopyFrom(node)
            if half:
                scale = self._name(node.input[1])
                if scale not in self._graph.constants:
                    self._graph.constants[scale] = self._graph.constants[node.input[1]].astype(self._numpy)
                made.input[1], made.output[0] = scale, self._name(name)
                made.name = f"{node.name}/half" if node.name else ""
            self._graph.nodes.append(made)

    def _name(self, name: str) -> str:
        """The name of a tensor's 16-bit version."""
        if name not in self._names:
            self._names[name] = unique_name(f"{name}/half", self._taken)
        return self._names[name]
