"""Runs TensorFlow engines. Instances share one function, which is thread-safe and releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends import options as read
from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.backends.engine_files import read_engine, require_cpu
from enginehouse_worker.errors import WorkerError

SIGNATURE = "serving_default"
OPTIONS = ("intra_op_threads", "inter_op_threads")
_MAX_THREADS = 1024


def check_options(options: Mapping[str, Any]) -> None:
    """Raise INVALID_ARGUMENT for an unknown option or a bad value (threads: 0, the default, is one a core)."""
    read.check_known(options, OPTIONS, "tensorflow")
    for name in OPTIONS:
        read.integer(options, name, 0, 0, _MAX_THREADS)


def load(engine: Path, *, device: str, options: Mapping[str, Any]) -> TensorFlowEngine:
    """Load an engine directory; `options` override those it was built with.

    Raises:
        WorkerError: INVALID_ARGUMENT for a bad directory or option; FAILED_PRECONDITION for a device other than the
            CPU, or for thread counts that differ from those this process runs TensorFlow with already.
    """
    require_cpu(device, "tensorflow")
    description = read_engine(engine, "tensorflow")
    chosen = {**description.get("options", {}), **options}
    check_options(chosen)
    set_threads(chosen)
    import tensorflow as tf

    try:
        module = tf.saved_model.load(str(engine / description["payload"]))
        function = module.signatures[SIGNATURE]
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"TensorFlow cannot load the SavedModel: {error}") from error
    return TensorFlowEngine(tf, module, function, Signature.from_json(description))


def set_threads(options: Mapping[str, Any]) -> None:
    """Set the threads of this process's TensorFlow, whose number is fixed when it first runs something.

    Raises:
        WorkerError: FAILED_PRECONDITION when it runs with another number already.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    threading = tf.config.threading
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
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says."""
        feeds = {name: self._to_tensor(name, array) for name, array in inputs.items()}
        values = self._function(**feeds)
        return {name: self._to_array(name, values[name]) for name in list(outputs) or self._outputs}

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
