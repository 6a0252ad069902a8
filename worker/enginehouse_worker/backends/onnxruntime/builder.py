"""Makes ONNX Runtime engines: the model itself, once ONNX Runtime has loaded it and run it at the profile's batches."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from enginehouse_worker import cpu
from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.backends.engine_files import describe_engine, write_engine
from enginehouse_worker.backends.onnxruntime.fusion import optimized_operators
from enginehouse_worker.backends.onnxruntime.runtime import load
from enginehouse_worker.backends.onnxruntime.session import check_options
from enginehouse_worker.backends.trial import run_trial
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.quantization.metadata import read_metadata

_PAYLOAD = "model.onnx"
_PRECISIONS = ("FP32", "INT8")


def build(
    model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """Build an engine from a directory with one ONNX file; returns `engine.json`'s content.

    Raises:
        WorkerError: FAILED_PRECONDITION for a precision this backend lacks; INVALID_ARGUMENT when the model is not of
            the precision asked for, or ONNX Runtime cannot load or run it.
    """
    if precision not in _PRECISIONS:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"backend 'onnxruntime' has {' and '.join(_PRECISIONS)}, not {precision}; the tensorrt backend has FP16",
        )
    check_options(options)
    source = sole_file(model, (".onnx",), "the model")
    proto = onnx.load(str(source), load_external_data=False)
    quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if quantized != (precision == "INT8"):
        found, wanted = ("has", "an FP32 model") if quantized else ("has no", "the quantize stage's model")
        raise WorkerError("INVALID_ARGUMENT", f"the model {found} Q/DQ nodes; {precision} needs {wanted}")
    metadata = read_metadata(proto)
    if metadata.dialect not in (None, "onnxruntime"):
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model was quantized in the {metadata.dialect!r} dialect, which is slow here; use 'onnxruntime'",
        )
    shutil.copyfile(source, output / _PAYLOAD)
    engine = describe_engine(
        backend="onnxruntime",
        version=version,
        precision=precision,
        signature=model_signature(model, proto),
        profile=profile,
        payload=_PAYLOAD,
        device={"kind": "cpu", "product": cpu.product()},
        options=options,
    )
    if quantized:
        engine["full_range_weights"] = not metadata.reduced_range
    write_engine(output, engine)
    loaded = load(output, device="cpu", options={})
    try:
        run_trial(loaded, profile)
    finally:
        loaded.close()
    engine["operators"] = optimized_operators(output / _PAYLOAD, options)
    write_engine(output, engine)
    return engine
