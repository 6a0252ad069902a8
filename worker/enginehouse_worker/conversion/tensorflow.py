"""Converts a frozen GraphDef with tf2onnx, and tidies what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Signature, TensorSpec
from enginehouse_worker.conversion.operators import allow_inlining, check_operators, replace_operators
from enginehouse_worker.conversion.passes.finite import check_finite
from enginehouse_worker.conversion.passes.naming import name_by_weights, rename_by_layer
from enginehouse_worker.conversion.tidy import tidy
from enginehouse_worker.conversion.weights import Stripped, strip_weights
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph, editable
from enginehouse_worker.stages.context import Progress


def convert(
    path: Path, signature: Signature, *, channels_first: bool, opset: int, progress: Progress
) -> tuple[EditableGraph, Signature]:
    """Convert the GraphDef of a file, whose tensors `name:0` are the signature's.

    With `channels_first`, rank-4 inputs and outputs become NCHW, and so does the returned signature.

    Raises:
        WorkerError: INVALID_ARGUMENT when the graph is damaged, does not fit the signature, has weights that are not
        finite, or has operators that ONNX lacks.
    """
    stripped = strip_weights(_read(path))
    specs = (*signature.inputs, *signature.outputs)
    names = {node.name for node in stripped.graph.node}
    absent = [spec.name for spec in specs if spec.name not in names]
    if absent:
        raise WorkerError("INVALID_ARGUMENT", f"signature.json names {absent}, which the frozen graph does not have")
    progress(0.1, "converting to ONNX")
    graph = _convert(stripped, signature, channels_first, opset)
    progress(0.7, "tidying the ONNX graph")
    graph.constants.update(stripped.weights)
    graph.inputs = [info for info in graph.inputs if info.name not in stripped.weights]
    stripped.weights.clear()
    replace_operators(graph)
    check_operators(graph)
    check_finite(graph)
    converted = Signature(
        tuple(_turned(s, channels_first) for s in signature.inputs),
        tuple(_turned(s, channels_first) for s in signature.outputs),
        signature.batched,
    )
    _declare(graph, converted)
    name_by_weights(graph)
    tidy(graph)
    rename_by_layer(graph)
    return graph, converted


def _read(path: Path) -> Any:
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"the frozen graph cannot be read: {error}") from None
    allow_inlining(definition)
    return definition


def _convert(stripped: Stripped, signature: Signature, channels_first: bool, opset: int) -> EditableGraph:
    """The ONNX graph, in which the weights are inputs that follow the signature's."""
    import tf2onnx

    turned = [
        [f"{s.name}:0" for s in specs if channels_first and len(s.shape) == 4]
        for specs in (signature.inputs, signature.outputs)
    ]
    named = [*(s.name for s in (*signature.inputs, *signature.outputs)), *stripped.weights]
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            stripped.graph,
            name="model",
            input_names=[f"{name}:0" for name in (*(s.name for s in signature.inputs), *stripped.weights)],
            output_names=[f"{s.name}:0" for s in signature.outputs],
            opset=opset,
            inputs_as_nchw=turned[0] or None,
            outputs_as_nchw=turned[1] or None,
            tensors_to_rename={f"{name}:0": name for name in named},
        )
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the model cannot be expressed in ONNX opset {opset}: {error}"
        ) from error
    graph = editable(model)
    graph.name = "model"
    return graph


def _turned(spec: TensorSpec, channels_first: bool) -> TensorSpec:
    if not channels_first or len(spec.shape) != 4:
        return spec
    batch, height, width, channels = spec.shape
    return TensorSpec(spec.name, spec.dtype, (batch, channels, height, width))


def _declare(graph: EditableGraph, signature: Signature) -> None:
    """Give the graph's inputs and outputs the signature's shapes, dynamic dimensions named."""
    specs: dict[str, TensorSpec] = {s.name: s for s in (*signature.inputs, *signature.outputs)}
    for info in (*graph.inputs, *graph.outputs):
        spec = specs[info.name]
        shape: Any = info.type.tensor_type.shape
        del shape.dim[:]
        for axis, size in enumerate(spec.shape):
            dimension = shape.dim.add()
            if size >= 0:
                dimension.dim_value = size
            else:
                dimension.dim_param = "batch" if axis == 0 and signature.batched else f"{spec.name}_{axis}"
