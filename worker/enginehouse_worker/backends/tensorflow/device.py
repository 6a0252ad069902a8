"""The one device on which this process's TensorFlow runs.

TensorFlow fixes its devices when it first runs something, so a worker process has one: a CPU, or one GPU whose memory
it takes as it needs it. TensorFlow's own default is to take all of a GPU at once, which leaves nothing for the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginehouse_worker import cpu
from enginehouse_worker.errors import WorkerError

_DEVICE = re.compile(r"(?:cuda|gpu)(?::(\d+))?")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class DeviceFacts:
    """What an engine's manifest says of a device; `compute_capability` is empty for a CPU."""

    kind: str
    product: str
    compute_capability: str = ""
    driver_version: str = ""

    def to_json(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class _Opened:
    """What this process runs TensorFlow on. TF32 is a switch of the whole process; None: nobody cared so far."""

    device: str
    facts: DeviceFacts
    tf32: bool | None


_opened: _Opened | None = None


def framework() -> Any:
    """TensorFlow, imported without its banners."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    return tf


def open_device(device: str, *, tf32: bool | None) -> DeviceFacts:
    """Give TensorFlow one device ("cpu", "cuda:0") with or without TF32, and say what it is.

    `tf32` lets convolutions and products of FP32 values round their factors to 10 bits of mantissa, on GPUs that can;
    None takes what the process has, and starts with none. The CPU has no such switch and takes any.

    Raises:
        WorkerError: INVALID_ARGUMENT for a name that is no device's; FAILED_PRECONDITION when there is no such GPU, or
            when this process runs TensorFlow on another device, or otherwise, already.
    """
    global _opened
    index = _index(device)
    name = "cpu" if index is None else f"cuda:{index}"
    wanted = None if index is None else tf32
    if _opened is None:
        tf = framework()
        facts = _choose_cpu(tf) if index is None else _choose_gpu(tf, index)
        tf.config.experimental.enable_tensor_float_32_execution(bool(wanted))
        _opened = _Opened(name, facts, wanted)
    elif _opened.device != name:
        raise _taken(f"on {_opened.device}", f"on {name}")
    elif wanted is not None and _opened.tf32 is not None and wanted != _opened.tf32:
        raise _taken(f"with TF32 {_on(_opened.tf32)}", f"with TF32 {_on(wanted)}")
    elif wanted is not None and _opened.tf32 is None:
        framework().config.experimental.enable_tensor_float_32_execution(wanted)
        _opened = replace(_opened, tf32=wanted)
    return _opened.facts


def _taken(how: str, wanted: str) -> WorkerError:
    return WorkerError(
        "FAILED_PRECONDITION",
        f"this process runs TensorFlow {how} already, and not {wanted}: give every model of a worker the same, or "
        "restart it",
    )


def _index(device: str) -> int | None:
    if device == "cpu":
        return None
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise WorkerError("INVALID_ARGUMENT", f"TensorFlow runs on 'cpu' or a GPU such as 'cuda:0', not on {device!r}")
    return int(match.group(1) or 0)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _choose_cpu(tf: Any) -> DeviceFacts:
    if tf.config.list_physical_devices("GPU"):
        _configure(lambda: tf.config.set_visible_devices([], "GPU"), "the CPU")
    return DeviceFacts("cpu", cpu.product())


def _choose_gpu(tf: Any, index: int) -> DeviceFacts:
    found = tf.config.list_physical_devices("GPU")
    if index >= len(found):
        built = "" if tf.test.is_built_with_cuda() else "; this TensorFlow is built for CPUs only"
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"TensorFlow finds no GPU {index} on this machine (GPUs found: {len(found)}){built}. A GPU needs NVIDIA's "
            "driver and a TensorFlow with CUDA's libraries, such as the worker environment tf-trt",
        )
    gpu = found[index]

    def configure() -> None:
        tf.config.set_visible_devices([gpu], "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)

    _configure(configure, f"cuda:{index}")
    details = tf.config.experimental.get_device_details(gpu)
    capability = ".".join(str(part) for part in details.get("compute_capability", ()))
    return DeviceFacts("gpu", str(details.get("device_name", "unknown")), capability, _driver_version())


def _configure(change: Callable[[], None], what: str) -> None:
    try:
        change()
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            "FAILED_PRECONDITION", f"TensorFlow runs in this process already and cannot take {what}: {error}"
        ) from None


def _driver_version() -> str:
    try:
        with _DRIVER.open() as file:
            match = re.search(r"(\d+\.\d+(?:\.\d+)?)", file.readline())
    except OSError:
        return ""
    return match.group(1) if match else ""
