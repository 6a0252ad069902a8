"""What a precision is to TensorRT: builder flags in weakly typed networks, the graph's types in strongly typed ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library
from enginehouse_worker.errors import WorkerError

PRECISIONS = ("FP32", "TF32", "FP16", "BF16", "INT8", "FP8")
# Builder flags of each precision where the network is weakly typed. INT8 and FP8 by Q/DQ, the rest FP16.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "FP32": (),
    "TF32": ("TF32",),
    "FP16": ("TF32", "FP16"),
    "BF16": ("TF32", "BF16"),
    "INT8": ("TF32", "FP16", "INT8"),
    "FP8": ("TF32", "FP16", "FP8"),
}
_FP8_CAPABILITY = (8, 9)


def check_precision(library: Library, precision: str) -> None:
    """Raise FAILED_PRECONDITION for a precision that this version of TensorRT, or this backend, does not have."""
    if precision == "FP8":
        if library.weakly_typed:
            library.lacks("FP8")
        library.require("DataType", "FP8", "FP8")
    if precision not in PRECISIONS:
        raise WorkerError("FAILED_PRECONDITION", f"backend 'tensorrt' has {', '.join(PRECISIONS)}, not {precision}")
    if precision == "BF16":
        library.require("BuilderFlag" if library.weakly_typed else "DataType", "BF16", "BF16")


def check_chip(precision: str, device: Mapping[str, str]) -> None:
    """Raise FAILED_PRECONDITION for a precision that a GPU does not have. `device` is what the manifest says of it."""
    capability = device["compute_capability"]
    if precision == "FP8" and tuple(int(part) for part in capability.split(".")) < _FP8_CAPABILITY:
        product = "a GPU" if device["product"] == "any" else device["product"]
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"{product} of compute capability {capability} has no FP8; 8.9 and later have it: use INT8 or FP16",
        )


def typed_source(library: Library, model: Path, precision: str) -> Path | bytes:
    """What to parse: the model's file, or the model with the precision's types where the network is strongly typed.

    Raises:
        WorkerError: INVALID_ARGUMENT when the model cannot have these types.
    """
    if library.weakly_typed or precision in ("FP32", "TF32"):
        return model
    import onnx

    from enginehouse_worker.backends.tensorrt.typing import to_half
    from enginehouse_worker.graphs.editing import editable
    from enginehouse_worker.graphs.write import check_size
    from enginehouse_worker.quantization.insert import FP8_IR_VERSION

    graph = editable(onnx.load(str(model)))
    to_half(graph, precision)
    typed = graph.to_model()
    if precision == "FP8":
        typed.ir_version = max(typed.ir_version, FP8_IR_VERSION)
    check_size(typed.ByteSize())
    return bytes(typed.SerializeToString())


def set_precision(library: Library, config: Any, network: Any, precision: str) -> None:
    """Set the precision's flags, and see that Q/DQ are there for INT8 and FP8, each with its own, and for nothing else.

    Raises:
        WorkerError: FAILED_PRECONDITION as `check_precision`; INVALID_ARGUMENT for INT8 or FP8 without their Q/DQ, or
            the other way round.
    """
    check_precision(library, precision)
    quantize = library.flag("LayerType", "QUANTIZE")
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = {layer.get_output(0).dtype.name: layer.name for layer in layers if layer.type == quantize}
    if found and precision not in ("INT8", "FP8"):
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the model has Q/DQ nodes ({next(iter(found.values()))!r} is one); {precision} is built from an "
            "unquantized model",
        )
    source = f"{precision} is built from the quantize stage's model (dialect tensorrt, format {precision.lower()})"
    if not found and precision in ("INT8", "FP8"):
        raise WorkerError("INVALID_ARGUMENT", f"the model has no Q/DQ nodes; {source}")
    other = next((kind for kind in found if kind != precision), None)
    if other is not None and not library.weakly_typed:
        raise WorkerError("INVALID_ARGUMENT", f"the model's Q/DQ are {other} ({found[other]!r} is one); {source}")
    tf32 = library.flag("BuilderFlag", "TF32")
    if tf32 is not None:
        config.clear_flag(tf32)  # TensorRT sets it by itself
    for name in _FLAGS[precision] if library.weakly_typed else _FLAGS[precision][:1]:
        config.set_flag(library.require("BuilderFlag", name, name))
