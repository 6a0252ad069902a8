"""Runs TensorFlow engines, on the CPU or a GPU. Instances share one function: thread-safe, and without the GIL.

Arrays are host memory: on a GPU each run copies its inputs to the device and its outputs back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends import options as read
from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.backends.engine_files import read_engine
from enginehouse_worker.backends.tensorflow.device import framework, open_device
from enginehouse_worker.errors import WorkerError

SIGNATURE = "serving_default"
THREADS = ("intra_op_threads", "inter_op_threads")
OPTIONS = (*THREADS, "tf32")
_MAX_THREADS = 1024


def check_options(options: Mapping[str, Any]) -> None:
    """Raise INVALID_ARGUMENT for an unknown option or a bad value (threads: 0, the default, is one a core)."""
    read.check_known(options, OPTIONS, "tensorflow")
    check_threads(options)
    read.flag(options, "tf32", False)


def check_threads(options: Mapping[str, Any]) -> None:
    """Raise INVALID_ARGUMENT for a number of threads that is none."""
    for name in THREADS:
        read.integer(options, name, 0, 0, _MAX_THREADS)


def load(engine: Path, *, device: str, options: Mapping[str, Any]) -> TensorFlowEngine:
    """Load an engine directory; `options` override those it was built with.

    Raises:
        WorkerError: INVALID_ARGUMENT for a bad directory or option; FAILED_PRECONDITION for a device that is not there,
            or for one, thread counts or TF32 that differ from those this process runs TensorFlow with already;
            RESOURCE_EXHAUSTED when the device's memory does not hold it.
    """
    description = read_engine(engine, "tensorflow")
    chosen = {**description.get("options", {}), **options}
    check_options(chosen)
    open_device(device, tf32=read.flag(chosen, "tf32", False))
    set_threads(chosen)
    return open_saved_model(engine / description["payload"], Signature.from_json(description))


def open_saved_model(directory: Path, signature: Signature) -> TensorFlowEngine:
    """The SavedModel in a directory, on the device that was opened.

    Raises:
        WorkerError: INVALID_ARGUMENT when TensorFlow cannot load it; RESOURCE_EXHAUSTED when memory does not hold it.
    """
    tf = framework()
    try:
        module = tf.saved_model.load(str(directory))
        function = module.signatures[SIGNATURE]
    except tf.errors.ResourceExhaustedError as error:
        raise WorkerError("RESOURCE_EXHAUSTED", f"the device's memory does not hold the SavedModel: {error}") from error
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"TensorFlow cannot load the SavedModel: {error}") from error
    return TensorFlowEngine(tf, module, function, signature)


def set_threads(options: Mapping[str, Any]) -> None:
    """Set the threads of this process's TensorFlow, whose number is fixed when it first runs something.

    Raises:
        WorkerError: FAILED_PRECONDITION when it runs with another number already.
    """
    threading = framework().config.threading
    for name, get, put in (
        ("intra_op_threads", threading.get_intra_op_parallelism_threads, threading.set_intra_op_parallelism_threads),
        ("inter_op_threads", threading.get_inter_op_parallelism_threads, threading.set_inter_op_parallelism_threads),
    ):
        wanted = read.integer(options, name, 0, 0, _MAX_THREADS)
        if name not in options or wanted == get():
            continue
        try:
            put(wanted)
        except RuntimeError:
            raise WorkerError(
                "FAILED_PRECONDITION",
                f"this process runs TensorFlow with {name} {get()} already; give every model the same, or restart it",
            ) from None


class TensorFlowEngine:
    """A loaded SavedModel and the signature it was published with."""

    def __init__(self, tf: Any, module: Any, function: Any, signature: Signature) -> None:
        self._tf = tf
        # The module owns what the function uses.
        self._module: Any = module
        self._function: Any = function
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def new_instance(self) -> TensorFlowInstance:
        return TensorFlowInstance(self._tf, self._function, self._signature)

    def close(self) -> None:
        self._module = self._function = None


class TensorFlowInstance:
    """One context of a SavedModel's function."""

    def __init__(self, tf: Any, function: Any, signature: Signature) -> None:
        self._tf = tf
        self._function: Any = function
        self._outputs = tuple(spec.name for spec in signature.outputs)
        self._bfloat16 = frozenset(s.name for s in (*signature.inputs, *signature.outputs) if s.dtype == "BF16")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says.

        Raises:
            WorkerError: RESOURCE_EXHAUSTED when memory does not hold what the batch needs.
        """
        try:
            values = self.compute(self.to_tensors(inputs))
            return {name: self._to_array(name, values[name]) for name in list(outputs) or self._outputs}
        except self._tf.errors.ResourceExhaustedError as error:
            rows = max((len(array) for array in inputs.values() if array.ndim), default=1)
            raise WorkerError(
                "RESOURCE_EXHAUSTED",
                f"memory does not hold what a batch of {rows} needs; send smaller batches, or unload other models: "
                f"{error.message}",
            ) from error

    def to_tensors(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Inputs as TensorFlow's tensors, on its device."""
        return {name: self._to_tensor(name, array) for name, array in inputs.items()}

    def compute(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """All outputs as tensors on the device, which may not have computed them yet."""
        values: Mapping[str, Any] = self._function(**tensors)
        return values

    def close(self) -> None:
        self._function = None

    def _to_tensor(self, name: str, array: Array) -> Any:
        if name in self._bfloat16:
            return self._tf.bitcast(self._tf.constant(array), self._tf.bfloat16)
        return self._tf.constant(array)

    def _to_array(self, name: str, tensor: Any) -> Array:
        if name in self._bfloat16:
            tensor = self._tf.bitcast(tensor, self._tf.uint16)
        array: Array = np.asarray(tensor.numpy())
        return array
