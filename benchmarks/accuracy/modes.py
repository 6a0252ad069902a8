"""The modes whose accuracy is measured: how each engine is built by the worker's stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mode:
    """Attributes:
    source: the folder of the model that is built: `fp32`, `int8-DIALECT` or `frozen`.
    environment: whose Python builds and verifies.
    """

    name: str
    backend: str
    precision: str
    source: str
    environment: str

    @property
    def calibrates(self) -> bool:
        """Whether its build takes the data: TF-TRT calibrates itself."""
        return self.backend == "tf-trt" and self.precision == "INT8"

    def build(self, batch: int) -> dict[str, Any]:
        """The build stage's parameters, for batches up to `batch`."""
        profile = {"min": 1, "opt": batch, "max": batch}
        return {"backend": self.backend, "precision": self.precision, "profile": profile, "options": {}}


MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("tensorflow-cpu-fp32", "tensorflow", "FP32", "frozen", "tensorflow"),
        Mode("onnxruntime-cpu-fp32", "onnxruntime", "FP32", "fp32", "onnxruntime"),
        Mode("onnxruntime-cpu-int8", "onnxruntime", "INT8", "int8-onnxruntime", "onnxruntime"),
        Mode("tensorrt-fp32", "tensorrt", "FP32", "fp32", "tensorrt"),
        Mode("tensorrt-fp16", "tensorrt", "FP16", "fp32", "tensorrt"),
        Mode("tensorrt-int8", "tensorrt", "INT8", "int8-tensorrt", "tensorrt"),
        Mode("tf-trt-fp32", "tf-trt", "FP32", "frozen", "tensorflow"),
        Mode("tf-trt-fp16", "tf-trt", "FP16", "frozen", "tensorflow"),
        Mode("tf-trt-int8", "tf-trt", "INT8", "frozen", "tensorflow"),
    )
}
