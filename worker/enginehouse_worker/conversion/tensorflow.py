"""Converts a frozen GraphDef with tf2onnx, and tidies what comes out."""

from __future__ import annotations

from typing import Any

import onnx

from enginehouse_worker.backends.base import Signature, TensorSpec
from enginehouse_worker.conversion.memory import frugal_conversion
from enginehouse_worker.conversion.tidy import tidy
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.context import Progress

# The newest that ONNX Runtime 1.23 and TensorRT 8.5 both read.
_IR_VERSION = 8


def convert(
    graph: bytes, signature: Signature, *, channels_first: bool, opset: int, progress: Progress
) -> tuple[onnx.ModelProto, Signature]:
    """Convert a serialized GraphDef whose tensors `name:0` are the signature's.

    With `channels_first`, rank-4 inputs and outputs become NCHW, and so does the returned signature.

    Raises:
        WorkerError: INVALID_ARGUMENT when the graph is damaged, does not fit the signature, or has operators that ONNX
        lacks.
    """
    import tensorflow as tf
    import tf2onnx

    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(graph)
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"the frozen graph cannot be read: {error}") from None
    del graph
    names = {node.name for node in definition.node}
    absent = [spec.name for spec in (*signature.inputs, *signature.outputs) if spec.name not in names]
    if absent:
        raise WorkerError("INVALID_ARGUMENT", f"signature.json names {absent}, which the frozen graph does not have")
    turned_inputs = [f"{s.name}:0" for s in signature.inputs if channels_first and len(s.shape) == 4]
    turned_outputs = [f"{s.name}:0" for s in signature.outputs if channels_first and len(s.shape) == 4]
    progress(0.1, "converting to ONNX")
    try:
        with frugal_conversion():
            model, _ = tf2onnx.convert.from_graph_def(
                definition,
                name="model",
                input_names=[f"{s.name}:0" for s in signature.inputs],
                output_names=[f"{s.name}:0" for s in signature.outputs],
                opset=opset,
                inputs_as_nchw=turned_inputs or None,
                outputs_as_nchw=turned_outputs or None,
                tensors_to_rename={f"{s.name}:0": s.name for s in (*signature.inputs, *signature.outputs)},
            )
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the model cannot be expressed in ONNX opset {opset}: {error}"
        ) from error
    del definition
    progress(0.7, "tidying the ONNX graph")
    converted = Signature(
        tuple(_turned(s, channels_first) for s in signature.inputs),
        tuple(_turned(s, channels_first) for s in signature.outputs),
        signature.batched,
    )
    tidy(model)
    _declare(model, converted)
    model.ir_version = _IR_VERSION
    model.producer_name = "enginehouse"
    model.producer_version = ""
    model.doc_string = ""
    model.graph.doc_string = ""
    return model, converted


def _turned(spec: TensorSpec, channels_first: bool) -> TensorSpec:
    if not channels_first or len(spec.shape) != 4:
        return spec
    batch, height, width, channels = spec.shape
    return TensorSpec(spec.name, spec.dtype, (batch, channels, height, width))


def _declare(model: onnx.ModelProto, signature: Signature) -> None:
    """Give the graph's inputs and outputs the signature's shapes, dynamic dimensions named."""
    specs: dict[str, TensorSpec] = {s.name: s for s in (*signature.inputs, *signature.outputs)}
    for info in (*model.graph.input, *model.graph.output):
        spec = specs[info.name]
        shape: Any = info.type.tensor_type.shape
        del shape.dim[:]
        for axis, size in enumerate(spec.shape):
            dimension = shape.dim.add()
            if size >= 0:
                dimension.dim_value = size
            else:
                dimension.dim_param = "batch" if axis == 0 and signature.batched else f"{spec.name}_{axis}"
