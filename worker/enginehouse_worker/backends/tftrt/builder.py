"""Makes TF-TRT engines: a SavedModel of the frozen graph, converted, calibrated, and built for batches."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import BatchProfile, Signature
from enginehouse_worker.backends.engine_files import describe_engine, write_engine
from enginehouse_worker.backends.tensorflow.builder import save
from enginehouse_worker.backends.tensorflow.device import framework
from enginehouse_worker.backends.tensorflow.runtime import SIGNATURE, set_threads
from enginehouse_worker.backends.tftrt.batches import building_batches, calibration_batches, check_convertible
from enginehouse_worker.backends.tftrt.counts import Conversion, count
from enginehouse_worker.backends.tftrt.options import BuildOptions, build_options
from enginehouse_worker.backends.tftrt.records import engine_batches
from enginehouse_worker.backends.tftrt.rewriting import forbid_building
from enginehouse_worker.backends.tftrt.runtime import load, require_gpu, take
from enginehouse_worker.backends.trial import run_trial
from enginehouse_worker.datasets import Dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.signature_file import read_signature

_PAYLOAD = "saved_model"
# Engines that one segment may keep beside those it was saved with, where building while serving is allowed.
_MORE_ENGINES = 16


def build(
    model: Path,
    output: Path,
    *,
    precision: str,
    profile: BatchProfile,
    options: Mapping[str, Any],
    version: str,
    data: Dataset | None,
) -> dict[str, Any]:
    """Build an engine from the freeze stage's directory on GPU 0; returns `engine.json`'s content.

    It has beside the fields of every engine `conversion`: `tensorrt_segments`, `converted_ops`, `tensorflow_ops`,
    `tensorflow_op_types`, and `engines`, the batch sizes that each segment has an engine for; and for INT8
    `calibration`: `samples`, `batch`, `data`.

    Raises:
        WorkerError: FAILED_PRECONDITION for a precision or a model that TF-TRT does not take, or where TensorRT can
            build nothing of it; INVALID_ARGUMENT for a bad option, or data that is missing or not wanted.
    """
    chosen = build_options(options, precision, profile)
    if (data is None) == (precision == "INT8"):
        wrong = "no data was given" if data is None else f"this one is {precision}"
        raise WorkerError(
            "INVALID_ARGUMENT",
            "TF-TRT calibrates while it builds, for INT8 only: give a `dataset` input or `synthetic` parameters with "
            f"INT8 and with no other precision; {wrong}",
        )
    signature = read_signature(model)
    check_convertible(signature)
    # Warnings too: TF-TRT says in them why it could not build an engine, and nowhere else.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    if precision == "FP32":
        # TensorRT reads it when it builds: FP32 is FP32, and TF32 a precision of its own.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    facts = require_gpu("cuda:0", tf32=precision != "FP32")
    set_threads(options)
    graph = sole_file(model, (".pb",), "the frozen graph").read_bytes()
    with tempfile.TemporaryDirectory(dir=output) as folder:
        save(graph, signature, Path(folder) / _PAYLOAD)
        converted = convert(Path(folder) / _PAYLOAD, output / _PAYLOAD, signature, precision, chosen, data)
    take(converted.segments)
    engines = engine_batches(output / _PAYLOAD)
    check_built(converted, engines)
    engine = describe_engine(
        backend="tf-trt",
        version=version,
        precision=precision,
        signature=signature,
        profile=profile,
        payload=_PAYLOAD,
        device=facts.to_json(),
        options=options,
    )
    if data is not None:
        engine["calibration"] = {"samples": data.samples, "batch": chosen.batches[-1], "data": data.describe()}
    engine["conversion"] = {**converted.to_json(), "engines": {name: list(sizes) for name, sizes in engines.items()}}
    write_engine(output, engine)
    loaded = load(output, device="cuda:0", options={}, version=version)
    try:
        run_trial(loaded, profile)
    finally:
        loaded.close()
    return engine


def convert(
    source: Path,
    target: Path,
    signature: Signature,
    precision: str,
    chosen: BuildOptions,
    data: Dataset | None,
) -> Conversion:
    """Convert a SavedModel into one with engines for `chosen.batches`; returns what became of its ops.

    Raises:
        WorkerError: FAILED_PRECONDITION when nothing of it can be converted, or TF-TRT fails; RESOURCE_EXHAUSTED when
            the GPU's memory does not hold what converting it needs.
    """
    tf = framework()
    try:
        converter = new_converter(source, precision, chosen)
        if data is None:
            function = converter.convert()
        else:
            largest = chosen.batches[-1]
            function = converter.convert(calibration_input_fn=calibration_batches(data, largest, _calibrating))
        found = count(function.graph.as_graph_def())
        if not found.segments:
            raise _nothing_converted(found, chosen)
        if data is None:
            converter.build(input_fn=building_batches(signature, chosen.batches, _building))
        converter.save(str(target), save_gpu_specific_engines=True)
        if not chosen.build_at_runtime:
            forbid_building(target)
    except tf.errors.ResourceExhaustedError as error:
        raise WorkerError(
            "RESOURCE_EXHAUSTED",
            f"the GPU's memory does not hold what a batch of {chosen.batches[-1]} needs while it is converted; use a "
            f"smaller largest batch, or free the GPU: {error.message}",
        ) from error
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise WorkerError("FAILED_PRECONDITION", f"TF-TRT cannot convert the model: {error}") from error
    return found


def new_converter(source: Path, precision: str, chosen: BuildOptions) -> Any:
    """TensorFlow's converter for a SavedModel.

    Its engines have an implicit batch: one that is built for a batch size takes all smaller ones.
    """
    from tensorflow.python.compiler.tensorrt import trt_convert

    limits = {"max_workspace_size_bytes": chosen.workspace_mib << 20} if chosen.workspace_mib else {}
    return trt_convert.TrtGraphConverterV2(
        input_saved_model_dir=str(source),
        input_saved_model_signature_key=SIGNATURE,
        precision_mode="FP32" if precision == "TF32" else precision,
        use_calibration=precision == "INT8",
        minimum_segment_size=chosen.minimum_segment,
        maximum_cached_engines=len(chosen.batches) + (_MORE_ENGINES if chosen.build_at_runtime else 0),
        # Forbidden afterwards, in what is saved: the converter's own way to forbid it loses the outputs' names.
        allow_build_at_runtime=True,
        **limits,
    )


def check_built(converted: Conversion, engines: Mapping[str, tuple[int, ...]]) -> None:
    """Say in the log which segments have no engine: TensorFlow runs them.

    Raises:
        WorkerError: FAILED_PRECONDITION when there is no engine at all.
    """
    missing = [name for name in converted.segments if not engines.get(name)]
    if len(missing) == len(converted.segments):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"TensorRT built no engine for the {len(missing)} parts of the graph that TF-TRT gave it, and TensorFlow "
            "would run all of it; the stage's log says why. Too little memory is one reason: free the GPU, or use a "
            "smaller largest batch",
        )
    if missing:
        print(f"TensorRT built no engine for {', '.join(missing)}: TensorFlow runs them", file=sys.stderr)


def _nothing_converted(found: Conversion, chosen: BuildOptions) -> WorkerError:
    types = ", ".join(sorted(found.remaining))
    return WorkerError(
        "FAILED_PRECONDITION",
        f"TF-TRT found no {chosen.minimum_segment} ops together that TensorRT can run (ops of the graph: {types}); use "
        "backend 'tensorflow', or a smaller minimum_segment",
    )


def _calibrating(shown: int, samples: int) -> None:
    print(f"calibrated with sample {shown} of {samples}", file=sys.stderr, flush=True)


def _building(batch: int) -> None:
    print(f"building engines for batch {batch}", file=sys.stderr, flush=True)
