"""ONNX Runtime on the CPU: FP32 and INT8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Backend, BatchProfile, LoadedEngine
from enginehouse_worker.backends.registry import framework_version


class OnnxRuntimeBackend:
    """An engine is an ONNX file, optimized by ONNX Runtime when it is loaded."""

    name = "onnxruntime"

    def version(self) -> str:
        return framework_version(self.name)

    def build(
        self, model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        from enginehouse_worker.backends.onnxruntime.builder import build

        return build(model, output, precision=precision, profile=profile, options=options, version=self.version())

    def load(self, engine: Path, *, device: str, options: Mapping[str, Any]) -> LoadedEngine:
        from enginehouse_worker.backends.onnxruntime.runtime import load

        return load(engine, device=device, options=options)


BACKEND: Backend = OnnxRuntimeBackend()
