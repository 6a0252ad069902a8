"""Runs TF-TRT engines: TensorFlow's runtime on a GPU, with TensorRT's plans in it.

A batch smaller than an engine's runs in it as it is (TF-TRT's plans take any batch up to the one they were built for),
so nothing is padded here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Signature
from enginehouse_worker.backends.engine_files import read_engine
from enginehouse_worker.backends.tensorflow.device import DeviceFacts, open_device
from enginehouse_worker.backends.tensorflow.runtime import TensorFlowEngine, open_saved_model, set_threads
from enginehouse_worker.backends.tftrt.options import check_options
from enginehouse_worker.backends.tftrt.rewriting import renamed_copy
from enginehouse_worker.errors import WorkerError

# Names of engine ops that this process has loaded or made. When such a model is garbage, TensorFlow destroys whatever
# has its ops' names: they are never used again.
_taken: set[str] = set()
_numbers = count(1)


def load(engine: Path, *, device: str, options: Mapping[str, Any], version: str) -> TensorFlowEngine:
    """Load an engine directory on a GPU; `options` override those it was built with.

    Raises:
        WorkerError: FAILED_PRECONDITION when it was built for another GPU or version, or the device is no GPU;
            RESOURCE_EXHAUSTED when the device's memory does not hold it.
    """
    description = read_engine(engine, "tf-trt")
    chosen = {**description.get("options", {}), **options}
    check_options(chosen)
    facts = require_gpu(device, tf32=None)
    check_fits(description, version, facts)
    set_threads(chosen)
    # Registers the ops that the SavedModel names.
    from tensorflow.python.compiler.tensorrt import trt_convert  # noqa: F401

    payload, signature = engine / description["payload"], Signature.from_json(description)
    segments = frozenset(description.get("conversion", {}).get("engines", {}))
    suffix = free_suffix(segments)
    take(name + suffix for name in segments)
    if not suffix:
        return open_saved_model(payload, signature)
    with tempfile.TemporaryDirectory() as folder:
        return open_saved_model(renamed_copy(payload, Path(folder) / "saved_model", suffix), signature)


def take(segments: Iterable[str]) -> None:
    """Note names that no engine may be loaded with any more."""
    _taken.update(segments)


def free_suffix(segments: Iterable[str]) -> str:
    """What to add to the names of an engine's ops: nothing while this process has none of these names."""
    return f"_{next(_numbers)}" if _taken & set(segments) else ""


def require_gpu(device: str, *, tf32: bool | None) -> DeviceFacts:
    """Give TensorFlow a GPU.

    Raises:
        WorkerError: FAILED_PRECONDITION for the CPU; otherwise as `open_device`.
    """
    if device == "cpu":
        raise WorkerError("FAILED_PRECONDITION", "backend 'tf-trt' runs on a GPU such as 'cuda:0', not on the CPU")
    return open_device(device, tf32=tf32)


def check_fits(description: Mapping[str, Any], version: str, facts: DeviceFacts) -> None:
    """Raise FAILED_PRECONDITION, naming both sides, for an engine of another GPU, TensorFlow or TensorRT."""
    built = description.get("device", {})
    product, capability = str(built.get("product", "")), str(built.get("compute_capability", ""))
    precision = str(description.get("precision", "fp16")).lower()
    if (product, capability) != (facts.product, facts.compute_capability):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built for {product} (compute capability {capability}); this GPU is {facts.product} "
            f"({facts.compute_capability}). Build one for it: enginehouse optimize MODEL --target tf-trt:{precision} "
            "on a machine with that GPU",
        )
    theirs = str(description.get("backend_version", ""))
    if theirs != version:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built by TensorFlow {theirs} and {version} is installed here: build it again with this",
        )
