"""What these tests run on: a GPU with TensorRT, or, when asked, the CPU with ONNX Runtime in its place.

`ENGINEHOUSE_GPU_TEST_BACKEND=onnxruntime` runs the same bodies where there is no GPU, as far as they make sense there:
it tests the tests.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.errors import EnginehouseError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments

ROOT = Path(__file__).resolve().parents[2]
BACKEND_VARIABLE = "ENGINEHOUSE_GPU_TEST_BACKEND"
POISON_PROGRAM = Path(__file__).with_name("poison.py")
POISON_VARIABLE = "ENGINEHOUSE_TEST_POISON"

# The least SQNR against ONNX Runtime FP32, in dB. FP32 differs by the order of sums. TF32 and FP16 keep 11 bits of each
# value: 2^-11 a layer, and errors of many layers add up. INT8 keeps 8 bits of activations whose ranges are those of
# random weights, which were not trained to be smooth: it says that scales and placement are right, not how accurate.
LEAST_SQNR_DB: Mapping[str, float] = {"FP32": 60.0, "TF32": 40.0, "FP16": 40.0, "INT8": 10.0}
# Of `worst_row`: half of what would leave doubt.
OWN_ANSWER = 0.25


@dataclass(frozen=True)
class Machine:
    """The backend under test, its precisions, its device, and the environments of the workers."""

    backend: str
    precisions: tuple[str, ...]
    device: str
    environment: WorkerEnvironment
    onnx: WorkerEnvironment

    @property
    def gpu(self) -> bool:
        return self.backend == "tensorrt"

    @property
    def half(self) -> str:
        """The precision that stands for "not quantized, quick": FP16 where there is one."""
        return "FP16" if self.gpu else "FP32"


def find_machine() -> Machine | str:
    """What is here, or why there is nothing to test on."""
    backend = os.environ.get(BACKEND_VARIABLE, "tensorrt")
    if backend not in ("tensorrt", "onnxruntime"):
        return f"{BACKEND_VARIABLE} is {backend!r}: expected tensorrt or onnxruntime"
    try:
        environments = WorkerEnvironments.discover()
        onnx = environments.for_backend("onnxruntime")
        if backend == "onnxruntime":
            return Machine(backend, ("FP32", "INT8"), "cpu", onnx, onnx)
        if lacking := _no_gpu():
            return lacking
        precisions = ("FP32", "TF32", "FP16", "INT8")
        return Machine(backend, precisions, "cuda:0", environments.for_backend("tensorrt"), onnx)
    except EnginehouseError as error:
        return error.message


def _no_gpu() -> str:
    """Why there is no GPU here; empty when there is one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return f"this machine has no NVIDIA GPU (NVML: {error})"
    return "" if count else "this machine has no NVIDIA GPU"


def with_poison(environment: WorkerEnvironment, folder: Path) -> tuple[WorkerEnvironment, Path]:
    """The environment with an interpreter whose engine runners lose their device once the returned file is made.

    Stages run as always.
    """
    trigger = folder / f"poison-{environment.name}"
    script = folder / f"python-{environment.name}"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$3" = serve ]; then {POISON_VARIABLE}={trigger} exec {environment.python} {POISON_PROGRAM} "$@"; fi\n'
        f'exec {environment.python} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return WorkerEnvironment(environment.name, script), trigger


def logits(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Outputs to compare: of probabilities, the logits that they come from, centred in each row."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    if rows.shape[1] > 1 and rows.min() >= 0 and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
        # What is below half precision's normal numbers says nothing.
        rows = np.log(np.maximum(rows, 1e-4))
        rows = rows - rows.mean(axis=1, keepdims=True)
    return rows


def sqnr_db(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Signal to noise in dB, at most 200 (equal)."""
    signal, noise = logits(expected), logits(found) - logits(expected)
    power = float((noise**2).sum())
    return 200.0 if power == 0 else min(200.0, 10 * float(np.log10(float((signal**2).sum()) / power)))


def worst_row(found: npt.NDArray[Any], right: npt.NDArray[Any], picked: Any) -> float:
    """How far any row is from its own right answer, `right[picked]`, over that answer's distance to the nearest other.

    Below 0.5 each row is nearest to its own answer: none is another's. Infinite for a wrong shape or what is no number.
    """
    rows = np.asarray(right, np.float64).reshape(len(right), -1)
    own = rows[np.asarray(picked)]
    values = np.asarray(found, np.float64).reshape(len(found), -1)
    if values.shape != own.shape or not np.isfinite(values).all():
        return float("inf")
    apart = np.linalg.norm(own[:, None] - rows[None], axis=2)
    apart[np.arange(len(own)), np.asarray(picked)] = np.inf
    return float((np.linalg.norm(values - own, axis=1) / apart.min(axis=1)).max())


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
