"""TensorFlow with TensorRT inside: the parts of a graph that TensorRT can run are its engines, the rest TensorFlow's.

TensorFlow had this up to 2.17. It needs a GPU, to build and to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Backend, BatchProfile, LoadedEngine
from enginehouse_worker.backends.registry import framework_version
from enginehouse_worker.datasets import Dataset


class TfTrtBackend:
    """An engine is a SavedModel with TensorRT's plans in its assets: for one type of GPU and one pair of versions."""

    name = "tf-trt"
    calibrates = True

    def version(self) -> str:
        """Of TensorFlow and of TensorRT: "2.14.1+tensorrt8.5.3.1"."""
        return f"{framework_version(self.name)}+tensorrt{framework_version('tensorrt')}"

    def build(
        self,
        model: Path,
        output: Path,
        *,
        precision: str,
        profile: BatchProfile,
        options: Mapping[str, Any],
        data: Dataset | None = None,
    ) -> dict[str, Any]:
        from enginehouse_worker.backends.tftrt.builder import build

        return build(
            model, output, precision=precision, profile=profile, options=options, version=self.version(), data=data
        )

    def load(self, engine: Path, *, device: str, options: Mapping[str, Any]) -> LoadedEngine:
        from enginehouse_worker.backends.tftrt.runtime import load

        return load(engine, device=device, options=options, version=self.version())


BACKEND: Backend = TfTrtBackend()
