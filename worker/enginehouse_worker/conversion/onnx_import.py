"""Imports an ONNX file: what a stranger uploaded becomes a clean FP32 graph with a dynamic batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from enginehouse_worker.backends.base import Array, Signature, TensorSpec
from enginehouse_worker.conversion.batch import copy_of, with_dynamic_batch
from enginehouse_worker.conversion.comparison import Comparison, compare
from enginehouse_worker.conversion.isolation import isolated
from enginehouse_worker.conversion.onnx_file import read_onnx
from enginehouse_worker.conversion.opset import normalized, without_weights
from enginehouse_worker.conversion.passes.finite import check_finite
from enginehouse_worker.conversion.passes.naming import name_nodes
from enginehouse_worker.conversion.precision import to_fp32
from enginehouse_worker.conversion.tidy import tidy
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import SHAPE_CONSTANT_ELEMENTS, EditableGraph, editable
from enginehouse_worker.graphs.signature import graph_signature
from enginehouse_worker.graphs.write import write_model
from enginehouse_worker.stages.context import Progress

# What a quantized model has, in either form.
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Imported:
    """`facts` go into the stage's result."""

    graph: EditableGraph
    signature: Signature
    facts: dict[str, Any]


def import_onnx(path: Path, work: Path, progress: Progress) -> Imported:
    """Import the file at `path`; its external data is in the same folder, and `work` is for temporary files.

    The result computes what the file does, which is tried on random inputs where it takes any. 16-bit weights become
    FP32. Dimension 0 becomes the batch where samples do not depend on each other.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the node, operator or tensor that is wrong; FAILED_PRECONDITION for more
            than 2 GiB of weights; INTERNAL when the rewritten model computes something else.
    """
    try:
        return _import(path, work, progress)
    except UnicodeDecodeError as error:
        # Parsing does not look at names; reading one does.
        raise WorkerError(
            "INVALID_ARGUMENT", f"{path.name} cannot be imported: it has a name that is not UTF-8 ({error})"
        ) from None


def _import(path: Path, work: Path, progress: Progress) -> Imported:
    model = read_onnx(path)
    uploaded = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    light, tensors = without_weights(model, SHAPE_CONSTANT_ELEMENTS)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    del model, tensors
    progress(0.2, "checking the ONNX model")
    data = light.SerializeToString()
    del light
    checked = isolated(lambda: normalized(data), "checking the ONNX model")
    graph = _with_weights(checked.converted, weights)
    reference = _with_weights(checked.uploaded, weights)
    del weights, checked
    to_fp32(reference)
    facts: dict[str, Any] = {"uploaded_opset": uploaded, "opset": graph.opset, "cast_to_fp32": to_fp32(graph)}
    facts["quantized"] = any(node.op_type in _QUANTIZED for node in graph.nodes)
    check_finite(graph)
    name_nodes(graph)
    _declare_outputs(graph, {})
    inputs = _inputs(graph)
    progress(0.4, "tidying the ONNX graph")
    original, fixed, dynamic = (work / f"{name}.onnx" for name in ("original", "fixed", "dynamic"))
    write_model(original, reference)
    del reference
    batched = with_dynamic_batch(graph)
    candidates = {dynamic: True, fixed: False} if batched is not None else {fixed: False}
    plain = copy_of(graph)
    tidy(plain)
    write_model(fixed, plain)
    if batched is not None:
        tidy(batched)
        write_model(dynamic, batched)
    progress(0.6, "trying the model in ONNX Runtime")
    found = isolated(lambda: compare(original, inputs, candidates), "trying the model in ONNX Runtime")
    chosen, facts["batch"] = _chosen(graph, plain, batched, found, fixed, dynamic, uploaded)
    _declare_outputs(chosen, found.ranks)
    signature = graph_signature(chosen.header())
    return Imported(chosen, Signature(signature.inputs, signature.outputs, chosen is batched), facts)


def _with_weights(data: bytes, weights: dict[str, Array]) -> EditableGraph:
    try:
        graph = editable(onnx.ModelProto.FromString(data))
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"the model has a constant that cannot be read: {error}") from None
    graph.constants.update(weights)
    graph.inputs = [info for info in graph.inputs if info.name not in weights]
    return graph


def _inputs(graph: EditableGraph) -> tuple[TensorSpec, ...]:
    found = graph_signature(graph.header())
    return found.inputs


def _chosen(
    graph: EditableGraph,
    plain: EditableGraph,
    batched: EditableGraph | None,
    found: Comparison,
    fixed: Path,
    dynamic: Path,
    uploaded: int,
) -> tuple[EditableGraph, str]:
    """Which graph to keep, and why."""
    if not found.ran:
        # As it was declared: a batch that is dynamic in the file was meant to be one.
        declared = graph_signature(graph.header()).batched
        if batched is not None and declared:
            return batched, "as declared; the model could not be tried on random inputs"
        return plain, "fixed; the model could not be tried on random inputs"
    if batched is not None and found.equal[dynamic]:
        return batched, "dynamic: samples give the same outputs alone and in a batch"
    if not found.equal[fixed] and uploaded < graph.opset:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model computes something else after ONNX's conversion from opset {uploaded} to {graph.opset}; export "
            f"it with opset {graph.opset}",
        )
    if not found.equal[fixed]:
        raise WorkerError(
            "INTERNAL",
            "the simplified model computes something else than the uploaded one on random inputs; this is a fault "
            "of the optimizer, please report the model",
        )
    reason = "samples of a batch depend on each other" if batched is not None else "dimension 0 is fixed"
    return plain, f"fixed: {reason}"


def _declare_outputs(graph: EditableGraph, ranks: Any) -> None:
    """Give outputs without a declared shape the one that inference finds, or the rank they had when run, in place."""
    inferred = graph.infer()
    for info in graph.outputs:
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            continue
        shape = inferred.shapes.get(info.name)
        if shape is None and info.name in ranks:
            shape = (None,) * ranks[info.name]
        if shape is None:
            continue
        tensor.shape.SetInParent()
        for size in shape:
            dimension = tensor.shape.dim.add()
            if isinstance(size, int):
                dimension.dim_value = size
            elif size is not None:
                dimension.dim_param = size
