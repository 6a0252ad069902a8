"""calibrate: the FP32 model and data, or a table made elsewhere, in; the calibration table out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from enginehouse_worker.backends.base import Array
from enginehouse_worker.calibration.collect import collect, tensors_to_calibrate, with_outputs
from enginehouse_worker.calibration.methods import METHODS, choose_range
from enginehouse_worker.calibration.table import CalibrationTable, adopt, read_table, storable
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing, sole_file
from enginehouse_worker.graphs.index import GraphIndex, index_graph, load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("method", "percentile", "batch_size", "max_samples", "synthetic", "preprocessing")
# Ranges settle with few samples; by default as many as TensorRT's samples calibrate with.
_MAX_SAMPLES = 512
# Small: activations of one batch are all in memory at once.
_BATCH_SIZE = 4
# How much of the stage's time the data pass takes, for progress.
_COLLECTING = 0.9


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    directory = ctx.input("model")
    model = load_model(directory)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise WorkerError("INVALID_ARGUMENT", "the model is quantized already; calibrate the FP32 model")
    graph = index_graph(model)
    tensors = tensors_to_calibrate(graph)
    if not tensors:
        raise WorkerError(
            "INVALID_ARGUMENT", "the model has no operator that INT8 helps (no convolution, product or pooling)"
        )
    digest = file_digest(sole_file(directory, (".onnx",), "the model"))
    if "table" in ctx.inputs:
        return _adopt(ctx, graph, tensors, digest)
    return _calibrate(ctx, params, graph, tensors, digest)


def _adopt(ctx: StageContext, graph: GraphIndex, tensors: Sequence[str], digest: str) -> dict[str, Any]:
    """Take an uploaded table instead of calibrating."""
    if ctx.params or "dataset" in ctx.inputs:
        given = ", ".join([*ctx.params, *(["dataset"] if "dataset" in ctx.inputs else [])])
        raise WorkerError("INVALID_ARGUMENT", f"calibrate: with a table, nothing else is needed; given: {given}")
    directory = ctx.inputs["table"]
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    if len(files) != 1:
        raise WorkerError("INVALID_ARGUMENT", f"the table: expected exactly one file; found: {listing(directory)}")
    known = frozenset([*graph.inputs, *graph.producer])
    adopted = adopt(read_table(files[0]), digest, tensors, known)
    adopted.table.write(ctx.output)
    return {
        "method": adopted.table.method,
        "samples": adopted.table.samples,
        "tensors": len(adopted.table.tensors),
        "model_digest": digest,
        "data": dict(adopted.table.data),
        "table": {
            "digest": file_digest(files[0]),
            "unknown_tensors": adopted.unknown,
            "other_model": bool(adopted.other_model),
            **({"model_digest": adopted.other_model} if adopted.other_model else {}),
        },
    }


def _calibrate(
    ctx: StageContext, params: Params, graph: GraphIndex, tensors: Sequence[str], digest: str
) -> dict[str, Any]:
    method = params.text("method", "entropy", tuple(METHODS))
    percentile = params.number("percentile", 99.99, 50.0, 100.0)
    batch_size = params.integer("batch_size", _BATCH_SIZE, 1, 4096)
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        model_signature(ctx.input("model"), graph.model),
        params.integer("max_samples", _MAX_SAMPLES, 1),
        preprocessing=read_preprocessing(params),
    )
    probe = with_outputs(graph, [name for name in tensors if name not in graph.inputs])
    histograms = collect(probe, tensors, _reporting(dataset, batch_size, ctx.progress))
    ranges = {}
    for number, name in enumerate(tensors):
        ranges[name] = storable(choose_range(histograms[name], method, percentile))
        if number % 16 == 0:
            share = _COLLECTING + (1 - _COLLECTING) * number / len(tensors)
            ctx.progress(share, f"{method} range of tensor {number + 1} of {len(tensors)}")
    table = CalibrationTable(
        method=method,
        percentile=percentile if method == "percentile" else None,
        model_digest=digest,
        data=dataset.describe(),
        samples=dataset.samples,
        tensors=ranges,
    )
    table.write(ctx.output)
    return {
        "method": method,
        "samples": dataset.samples,
        "tensors": len(ranges),
        "model_digest": table.model_digest,
        "data": dict(table.data),
    }


def _reporting(dataset: Dataset, size: int, progress: Progress) -> Iterator[dict[str, Array]]:
    count = -(-dataset.samples // size)
    for number, batch in enumerate(dataset.batches(size)):
        yield batch
        progress(_COLLECTING * (number + 1) / count, f"batch {number + 1} of {count}")


STAGE = Stage("calibrate", ("model", "dataset", "table"), run, ("onnxruntime", "onnx", "numpy"))
