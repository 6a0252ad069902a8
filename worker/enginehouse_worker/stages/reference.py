"""reference: the FP32 model's outputs, which every engine of the model is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.datasets import open_dataset, read_preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file, write_whole
from enginehouse_worker.graphs.index import load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.npy import write_npz
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("synthetic", "max_samples", "batch_size", "preprocessing")
FILE = "outputs.npz"


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    size = params.integer("batch_size", 8, 1, 4096)
    directory = ctx.input("model")
    model = load_model(directory)
    signature = model_signature(directory, model)
    del model
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        signature,
        params.integer("max_samples", 2**31 - 1, 1) if "max_samples" in params else None,
        preprocessing=read_preprocessing(params),
    )
    session = create_session(sole_file(directory, (".onnx",), "the model"))
    names = [spec.name for spec in signature.outputs]
    outputs: dict[str, list[Array]] = {name: [] for name in names}
    done = 0
    for batch in dataset.batches(size):
        try:
            values = session.run(names, batch)
        except Exception as error:
            raise WorkerError("INVALID_ARGUMENT", f"the model failed on the samples from {done}: {error}") from error
        for name, value in zip(names, values, strict=True):
            outputs[name].append(value)
        done += len(next(iter(batch.values())))
        ctx.progress(done / dataset.samples, f"sample {done} of {dataset.samples}")
    write_whole(ctx.output / FILE, write_npz({name: np.concatenate(parts) for name, parts in outputs.items()}))
    return {"samples": done, "data": dataset.describe()}


STAGE = Stage("reference", ("model", "dataset"), run, ("onnxruntime", "onnx", "numpy"))
