"""What TensorRT's inspector says of an engine, in one format for every version: `inspector.json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library

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


def inspect(library: Library, plan: bytes) -> dict[str, Any] | None:
    """The layers of a plan; None where it cannot be loaded or its layers cannot be read."""
    trt = library.trt
    runtime = trt.Runtime(library.logger)
    try:
        engine = runtime.deserialize_cuda_engine(plan)
    except Exception:  # a plan for another device
        engine = None
    if engine is None:
        library.messages.take_errors()
        return None
    try:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return layers(parse(text))
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

    `precision` is the type of the first output, absent when the inspector does not say; `nodes` are the ONNX nodes that
    became the layer. Engines built without detailed profiling have names only.
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
    precision = data_type(str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", ""))))
    if precision:
        found["precision"] = precision
    found["nodes"] = _NODE.findall(str(layer.get("Metadata", "")))
    return found


def data_type(text: str) -> str:
    """The type that a description of a format names; empty when it names none."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return next((name for word, name in _TYPES if word in words), "")
