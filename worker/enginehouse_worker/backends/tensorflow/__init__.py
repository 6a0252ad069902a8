"""TensorFlow on the CPU or a GPU: FP32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Backend, BatchProfile, LoadedEngine
from enginehouse_worker.backends.registry import framework_version


class TensorFlowBackend:
    """An engine is a SavedModel around the frozen graph."""

    name = "tensorflow"

    def version(self) -> str:
        return framework_version(self.name)

    def build(
        self, model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        from enginehouse_worker.backends.tensorflow.builder import build

        return build(model, output, precision=precision, profile=profile, options=options, version=self.version())

    def load(self, engine: Path, *, device: str, options: Mapping[str, Any]) -> LoadedEngine:
        from enginehouse_worker.backends.tensorflow.runtime import load

        return load(engine, device=device, options=options)


BACKEND: Backend = TensorFlowBackend()
