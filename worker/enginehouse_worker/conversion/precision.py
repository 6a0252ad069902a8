"""Makes 16-bit floating-point models FP32: the reference that everything else is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from enginehouse_worker.graphs.editing import EditableGraph, subgraphs

_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Attributes that name a tensor type: Cast's, random operators', SequenceEmpty's, DequantizeLinear's.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def to_fp32(graph: EditableGraph) -> bool:
    """Turn FP16 and BF16 inputs, outputs, weights and casts into FP32, in place; whether there were any.

    FP16 and BF16 values are FP32 values, so no weight changes; sums become more exact than the model's own.
    """
    changed = False
    for info in (*graph.inputs, *graph.outputs):
        changed |= _declare(info)
    for name, value in graph.constants.items():
        # ml_dtypes' bfloat16 is no NumPy type, so its kind is V.
        if value.dtype == np.float16 or value.dtype.name == "bfloat16":
            graph.constants[name] = value.astype(np.float32)
            changed = True
    for node in graph.nodes:
        changed |= _node(node)
    return changed


def _node(node: onnx.NodeProto) -> bool:
    changed = False
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF:
            attribute.i = onnx.TensorProto.FLOAT
            changed = True
        if attribute.HasField("t") and attribute.t.data_type in _HALF:
            _tensor(attribute.t)
            changed = True
    for graph in subgraphs(node):
        for info in (*graph.input, *graph.output, *graph.value_info):
            changed |= _declare(info)
        for tensor in graph.initializer:
            if tensor.data_type in _HALF:
                _tensor(tensor)
                changed = True
        for inner in graph.node:
            changed |= _node(inner)
    return changed


def _tensor(tensor: onnx.TensorProto) -> None:
    value = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _declare(info: Any) -> bool:
    if info.type.tensor_type.elem_type not in _HALF:
        return False
    info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return True
