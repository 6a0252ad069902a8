"""What a quantized model says about itself, in its ONNX metadata."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

_DIALECT = "enginehouse.dialect"
_REDUCED_RANGE = "enginehouse.reduced_range"


@dataclass(frozen=True)
class QuantizationMetadata:
    """`dialect` is None for a model that the quantize stage did not write; `reduced_range`: weights have 7 bits."""

    dialect: str | None
    reduced_range: bool


def write_metadata(model: onnx.ModelProto, metadata: QuantizationMetadata) -> None:
    """Record it in the model."""
    values = {_DIALECT: metadata.dialect or "", _REDUCED_RANGE: "true" if metadata.reduced_range else "false"}
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)


def read_metadata(model: onnx.ModelProto) -> QuantizationMetadata:
    """Read it from the model."""
    values = {entry.key: entry.value for entry in model.metadata_props}
    return QuantizationMetadata(values.get(_DIALECT) or None, values.get(_REDUCED_RANGE) == "true")
