"""The signature of an ONNX model: from `signature.json` beside it, or from the graph itself."""

from __future__ import annotations

from pathlib import Path

import onnx

from enginehouse_worker.backends.base import Signature, TensorSpec
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.signature_file import FILE, read_signature

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.STRING: "BYTES",
}


def model_signature(directory: Path, model: onnx.ModelProto) -> Signature:
    """The signature beside the model, or the graph's own when an ONNX file was uploaded alone."""
    if (directory / FILE).is_file():
        return read_signature(directory)
    return graph_signature(model)


def graph_signature(model: onnx.ModelProto) -> Signature:
    """The signature that a graph declares.

    Raises:
        WorkerError: INVALID_ARGUMENT for an input or output that is not a tensor of a known type and rank.
    """
    constants = {t.name for t in model.graph.initializer}
    inputs = tuple(_spec(i) for i in model.graph.input if i.name not in constants)
    outputs = tuple(_spec(o) for o in model.graph.output)
    return Signature(inputs, outputs, is_batched((*inputs, *outputs)))


def is_batched(specs: tuple[TensorSpec, ...]) -> bool:
    """Whether dimension 0 is dynamic in every tensor, which is how models declare a batch."""
    return all(spec.shape and spec.shape[0] == -1 for spec in specs)


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = info.type.tensor_type
    if tensor.elem_type not in _DTYPES or not tensor.HasField("shape"):
        raise WorkerError("INVALID_ARGUMENT", f"{info.name!r} of the ONNX model is not a tensor of known type and rank")
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in tensor.shape.dim)
    return TensorSpec(info.name, _DTYPES[tensor.elem_type], shape)
