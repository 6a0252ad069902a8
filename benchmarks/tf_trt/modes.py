"""What is measured: each mode is an engine, the device it runs on, and options of its load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CALIBRATION = {"distribution": "images", "samples": 256, "seed": 0}
# Of the modes without a GPU: larger batches take seconds and are no faster.
LARGEST_ON_CPU = 32


@dataclass(frozen=True)
class Mode:
    """A way to run a network.

    Attributes:
        engine: the folder of the engine; modes that differ only when they are loaded share one.
        device: "cpu" or "cuda:0".
    """

    name: str
    engine: str
    backend: str
    precision: str
    device: str = "cuda:0"
    load: Mapping[str, str] = field(default_factory=dict)

    @property
    def scopes(self) -> tuple[str, ...]:
        """On the CPU there is no device to copy to."""
        return ("host",) if self.device == "cpu" else ("engine", "host")

    def batches(self, wanted: Sequence[int]) -> tuple[int, ...]:
        return tuple(batch for batch in wanted if self.device != "cpu" or batch <= LARGEST_ON_CPU)

    def build(self, largest: int, engine_batches: Sequence[int]) -> dict[str, Any]:
        """The parameters of the build stage, for batches up to `largest`."""
        options: dict[str, str] = {}
        if self.backend == "tf-trt" and self.precision != "INT8":
            sizes = sorted({largest, *(batch for batch in engine_batches if batch < largest)})
            options["batches"] = ",".join(map(str, sizes))
        return {
            "backend": self.backend,
            "precision": self.precision,
            "profile": {"min": 1, "opt": largest, "max": largest},
            "options": options,
            **({"synthetic": CALIBRATION} if self.precision == "INT8" else {}),
        }


# In the order of building.
MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("tensorflow-cpu-fp32", "tensorflow", "tensorflow", "FP32", "cpu"),
        Mode("tensorflow-gpu-fp32", "tensorflow", "tensorflow", "FP32", load={"tf32": "false"}),
        Mode("tensorflow-gpu-tf32", "tensorflow", "tensorflow", "FP32", load={"tf32": "true"}),
        Mode("tf-trt-fp32", "tf-trt-fp32", "tf-trt", "FP32"),
        Mode("tf-trt-int8", "tf-trt-int8", "tf-trt", "INT8"),
        Mode("tf-trt-fp16", "tf-trt-fp16", "tf-trt", "FP16"),
        Mode("tf-trt-tf32", "tf-trt-tf32", "tf-trt", "TF32"),
    )
}
