"""calibrate: the FP32 model and data in, the calibration table out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from enginehouse_worker.backends.base import Array
from enginehouse_worker.calibration.collect import collect, tensors_to_calibrate, with_outputs
from enginehouse_worker.calibration.methods import METHODS, choose_range
from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("method", "percentile", "batch_size", "max_samples", "synthetic")
# Ranges settle with few samples; by default as many as TensorRT's samples calibrate with.
_MAX_SAMPLES = 512
# Small: activations of one batch are all in memory at once.
_BATCH_SIZE = 4
# How much of the stage's time the data pass takes, for progress.
_COLLECTING = 0.9


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    method = params.text("method", "entropy", tuple(METHODS))
    percentile = params.number("percentile", 99.99, 50.0, 100.0)
    batch_size = params.integer("batch_size", _BATCH_SIZE, 1, 4096)
    directory = ctx.input("model")
    model = load_model(directory)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise WorkerError("INVALID_ARGUMENT", "the model is quantized already; calibrate the FP32 model")
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        model_signature(directory, model),
        params.integer("max_samples", _MAX_SAMPLES, 1),
    )
    graph = index_graph(model)
    tensors = tensors_to_calibrate(graph)
    if not tensors:
        raise WorkerError(
            "INVALID_ARGUMENT", "the model has no operator that INT8 helps (no convolution, product or pooling)"
        )
    probe = with_outputs(graph, [name for name in tensors if name not in graph.inputs])
    histograms = collect(probe, tensors, _reporting(dataset, batch_size, ctx.progress))
    ranges = {}
    for number, name in enumerate(tensors):
        ranges[name] = choose_range(histograms[name], method, percentile)
        if number % 16 == 0:
            share = _COLLECTING + (1 - _COLLECTING) * number / len(tensors)
            ctx.progress(share, f"{method} range of tensor {number + 1} of {len(tensors)}")
    table = CalibrationTable(
        method=method,
        percentile=percentile if method == "percentile" else None,
        model_digest=file_digest(sole_file(directory, (".onnx",), "the model")),
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


STAGE = Stage("calibrate", ("model", "dataset"), run, ("onnxruntime", "onnx", "numpy"))
