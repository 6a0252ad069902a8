"""What TensorRT's inspector says of an engine, in one format for every version: `inspector.json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library
from enginehouse_worker.backends.tensorrt.refit import refit
from enginehouse_worker.errors import WorkerError

FILE = "inspector.json"
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\s]*(?:\[|$))")
# The words of "Format/Datatype" that name a type, such as "Thirty-two wide channel vectorized row major Int8 format".
_TYPES = (
    ("int8", "INT8"),
    ("fp8", "FP8"),
    ("bf16", "BF16"),
    ("bfloat16", "BF16"),
    ("fp16", "FP16"),
    ("half", "FP16"),
    ("fp32", "FP32"),
    ("float", "FP32"),
    ("int32", "INT32"),
    ("int64", "INT64"),
    ("uint8", "UINT8"),
    ("bool", "BOOL"),
)
# A kernel's name holds the types of its operands, then of its result: sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize...
_KERNEL_TYPE = "i8|u8|e4m3|e5m2|bf16|f16|tf32|f32"
_OPERANDS = re.compile(f"_({_KERNEL_TYPE})(?:{_KERNEL_TYPE})_(tf32)?")
_KERNEL_TYPES = {
    "i8": "INT8",
    "u8": "INT8",
    "e4m3": "FP8",
    "e5m2": "FP8",
    "bf16": "BF16",
    "f16": "FP16",
    "tf32": "TF32",
    "f32": "FP32",
}


def open_plan(library: Library, directory: Path, description: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """TensorRT's runtime, and a directory's engine with its weights; None, with the reason logged, where it cannot be
    loaded. `description` is its `engine.json`.
    """
    runtime = library.trt.Runtime(library.logger)
    if description.get("version_compatible") and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    try:
        engine = runtime.deserialize_cuda_engine((directory / description["payload"]).read_bytes())
        if engine is None:
            raise WorkerError("FAILED_PRECONDITION", library.messages.take_errors() or "no reason given")
        refit(library, engine, directory, description)
    except Exception as error:  # a plan for another device, or no memory for another engine
        print(f"the plan cannot be loaded to see its layers: {error}", file=sys.stderr)
        library.messages.take_errors()
        return None
    return runtime, engine


def inspect(library: Library, engine: Any, context: Any = None) -> dict[str, Any] | None:
    """The layers of an engine; None where TensorRT does not say what they are.

    Args:
        context: an execution context whose shapes are set: with it the types of layers of dynamic shapes are known.
    """
    try:
        inspector = engine.create_engine_inspector()
        if context is not None:
            inspector.execution_context = context
        return layers(parse(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON)))
    except (TypeError, ValueError) as error:
        print(f"the inspector's answer is not what it was: {error}", file=sys.stderr)
        return None


def parse(text: str) -> dict[str, Any]:
    """The inspector's JSON, in whose strings TensorRT 8.6 leaves control characters as they are.

    Raises:
        ValueError: it is no JSON object.
    """
    value = json.loads(text, strict=False)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def layers(information: Mapping[str, Any]) -> dict[str, Any]:
    """`{"layers": [{name, type, precision, tactic, nodes}]}` in the engine's order, from the inspector's JSON.

    `precision` is what the kernel multiplies, else the type of the first output; absent when neither is said, as by 8.6
    for what is no matrix product in an engine of dynamic shapes. `nodes` are the ONNX nodes that became the layer.
    Engines built without detailed profiling have names only.
    """
    return {"layers": [_layer(layer) for layer in information.get("Layers", [])]}


def _layer(layer: Any) -> dict[str, Any]:
    if isinstance(layer, str):
        return {"name": layer}
    found: dict[str, Any] = {"name": str(layer.get("Name", ""))}
    for key, name in (("LayerType", "type"), ("TacticName", "tactic")):
        if layer.get(key):
            found[name] = str(layer[key])
    outputs = layer.get("Outputs") or [{}]
    precision = kernel_type(found.get("tactic", "")) or data_type(
        str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", "")))
    )
    if precision:
        found["precision"] = precision
    found["nodes"] = _NODE.findall(str(layer.get("Metadata", "")))
    return found


def data_type(text: str) -> str:
    """The type that a description of a format names; empty when it names none."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return next((name for word, name in _TYPES if word in words), "")


def kernel_type(tactic: str) -> str:
    """The type in which the kernel of a name multiplies; empty when the name does not say."""
    found = _OPERANDS.search(tactic)
    return _KERNEL_TYPES[found[2] or found[1]] if found else ""
