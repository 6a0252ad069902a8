"""TensorRT on NVIDIA GPUs: one code path for TensorRT 8.5 and later, and TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Backend, BatchProfile, DeviceMemory, LoadedEngine
from enginehouse_worker.backends.registry import framework_version


class TensorRtBackend:
    """An engine is a serialized plan, for one type of GPU and one version of TensorRT."""

    name = "tensorrt"
    takes_timing_cache = True

    def version(self) -> str:
        return framework_version(self.name)

    def build(
        self,
        model: Path,
        output: Path,
        *,
        precision: str,
        profile: BatchProfile,
        options: Mapping[str, Any],
        timing_cache: Path | None = None,
    ) -> dict[str, Any]:
        from enginehouse_worker.backends.tensorrt.builder import build

        return build(
            model,
            output,
            precision=precision,
            profile=profile,
            options=options,
            version=self.version(),
            timing_cache=timing_cache,
        )

    def load(self, engine: Path, *, device: str, options: Mapping[str, Any]) -> LoadedEngine:
        from enginehouse_worker.backends.tensorrt.runtime import load

        return load(engine, device=device, options=options)

    def device_memory(self, device: str) -> DeviceMemory:
        """What the device does with segments and regions of other processes."""
        from enginehouse_worker.backends.tensorrt.host_memory import PeerMemory

        return PeerMemory(device)


BACKEND: Backend = TensorRtBackend()
