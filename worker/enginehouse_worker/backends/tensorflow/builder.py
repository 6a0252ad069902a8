"""Makes TensorFlow engines: a SavedModel whose one signature runs the frozen graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker import cpu
from enginehouse_worker.backends.base import BatchProfile, Signature
from enginehouse_worker.backends.engine_files import describe_engine, write_engine
from enginehouse_worker.backends.tensorflow.runtime import SIGNATURE, check_options, load, set_threads
from enginehouse_worker.backends.trial import run_trial
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.signature_file import read_signature

_PAYLOAD = "saved_model"


def build(
    model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """Build an engine from the freeze stage's directory; returns `engine.json`'s content.

    Raises:
        WorkerError: FAILED_PRECONDITION for any precision but FP32; INVALID_ARGUMENT when TensorFlow cannot run the
        graph.
    """
    if precision != "FP32":
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"backend 'tensorflow' has FP32 only, not {precision}; onnxruntime (CPU) and tensorrt (GPU) have INT8",
        )
    check_options(options)
    set_threads(options)
    signature = read_signature(model)
    save(sole_file(model, (".pb",), "the frozen graph").read_bytes(), signature, output / _PAYLOAD)
    engine = describe_engine(
        backend="tensorflow",
        version=version,
        precision=precision,
        signature=signature,
        profile=profile,
        payload=_PAYLOAD,
        device={"kind": "cpu", "product": cpu.product()},
        options=options,
    )
    write_engine(output, engine)
    loaded = load(output, device="cpu", options={})
    try:
        run_trial(loaded, profile)
    finally:
        loaded.close()
    return engine


def save(graph: bytes, signature: Signature, directory: Path) -> None:
    """Write a SavedModel for a serialized GraphDef whose tensors `name:0` are the signature's.

    Raises:
        WorkerError: INVALID_ARGUMENT when TensorFlow cannot import the graph.
    """
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(graph)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(definition, name=""), [])
        function = wrapped.prune(
            {spec.name: f"{spec.name}:0" for spec in signature.inputs},
            {spec.name: f"{spec.name}:0" for spec in signature.outputs},
        )
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"TensorFlow cannot import the frozen graph: {error}") from error
    module = tf.Module()
    module.function = function
    tf.saved_model.save(module, str(directory), signatures={SIGNATURE: function})
