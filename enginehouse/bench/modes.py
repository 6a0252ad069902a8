"""Inference modes: a backend on a kind of device at a precision, under the names the paper and the suites use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BACKENDS = ("tensorflow", "tf-trt", "tensorrt", "onnxruntime")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
DEVICE_KINDS = ("cpu", "gpu")
CALIBRATED_PRECISIONS = ("int8", "fp8")
_GPU_ONLY = ("tf-trt", "tensorrt")


@dataclass(frozen=True)
class Mode:
    """How a model is run.

    Attributes:
        name: unique in a suite, such as "onnxruntime-cpu-int8".
        backend: one of `BACKENDS`.
        device: "cpu" or "gpu".
        precision: one of `PRECISIONS`.
        build_options: the builder's options by name.
        load_options: the runtime's options by name.
        batches: batch sizes instead of the suite's; empty for the suite's.
        environment: worker environment that runs it; None for its backend's own.
    """

    name: str
    backend: str
    device: str
    precision: str
    build_options: Mapping[str, str] = field(default_factory=dict)
    load_options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    environment: str | None = None

    @property
    def engine_precision(self) -> str:
        """What to ask the builder for. TensorFlow's graph is the same with and without TF32: its runtime decides."""
        return "fp32" if (self.backend, self.precision) == ("tensorflow", "tf32") else self.precision

    @property
    def process(self) -> str:
        """Modes of one environment and device share a worker process when this is equal: TF32 is a switch of the whole
        process, and TensorFlow's memory pool is kept away from TensorRT's."""
        return f"{self.backend} {self.load_options.get('tf32', '')}".strip()

    @property
    def needs_calibration(self) -> bool:
        return self.precision in CALIBRATED_PRECISIONS


def mode_name(backend: str, device: str, precision: str) -> str:
    """The name of a mode: backends that need a GPU leave the device out. `device` may be a device such as "gpu:1"."""
    return f"{backend}-{precision}" if backend in _GPU_ONLY else f"{backend}-{device.partition(':')[0]}-{precision}"


def known_modes() -> dict[str, Mode]:
    """Every combination under its name, with no options but TensorFlow's on a GPU, which runs where a TensorFlow with
    CUDA is, with TF32 as the mode's name says."""
    modes = {}
    for backend in BACKENDS:
        for device in DEVICE_KINDS:
            if backend in _GPU_ONLY and device == "cpu":
                continue
            for precision in PRECISIONS:
                name = mode_name(backend, device, precision)
                if (backend, device) == ("tensorflow", "gpu"):
                    tf32 = {"tf32": "true" if precision == "tf32" else "false"}
                    modes[name] = Mode(name, backend, device, precision, load_options=tf32, environment="tf-trt")
                else:
                    modes[name] = Mode(name, backend, device, precision)
    return modes
