"""layers: compares each layer of a quantized model with FP32, in the quantized graph and alone."""

from __future__ import annotations

from typing import Any

import onnx

from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.backends.tensorrt.opsets import raise_opset
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_json
from enginehouse_worker.graphs.editing import editable
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.layers.pairs import LayerPair, pair_layers, set_outputs, with_layers_alone
from enginehouse_worker.metrics import Agreement
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("synthetic", "max_samples", "batch_size", "preprocessing")
_MAX_SAMPLES = 64
# Every layer's output of one batch is in memory three times.
_BATCH_SIZE = 4
FILE = "layers.json"


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    size = params.integer("batch_size", _BATCH_SIZE, 1, 4096)
    directory = ctx.input("model")
    quantized = index_graph(load_model(ctx.input("quantized")))
    graph = index_graph(_in_opset_of(quantized.model, load_model(directory)))
    pairs = pair_layers(graph, quantized)
    if not any(pair.quantized for pair in pairs):
        raise WorkerError("INVALID_ARGUMENT", "the quantized model has no quantized layer; compare a quantized one")
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        model_signature(directory, graph.model),
        params.integer("max_samples", _MAX_SAMPLES, 1),
        preprocessing=read_preprocessing(params),
    )
    model, copies = with_layers_alone(graph, quantized, pairs)
    # Q/DQ round and all else runs in FP32, as it must anyway where a layer's output is read before it is rounded.
    alone = create_session(model.SerializeToString(), integer_kernels=False)
    wanted = [pair.quantized_output for pair in pairs]
    set_outputs(quantized.model, wanted)
    whole = create_session(quantized.model.SerializeToString(), integer_kernels=False)
    del model
    names = [output.name for output in alone.get_outputs()]
    together = {pair.output: Agreement() for pair in pairs}
    own = {name: Agreement() for name in copies}
    done = 0
    for batch in dataset.batches(size):
        try:
            values = dict(zip(names, alone.run(names, batch), strict=True))
            for name, copy in copies.items():
                own[name].add(values[name], values.pop(copy))
            for pair, actual in zip(pairs, whole.run(wanted, batch), strict=True):
                together[pair.output].add(values.pop(pair.output), actual)
        except Exception as error:
            raise WorkerError("INVALID_ARGUMENT", f"the model failed on the samples from {done}: {error}") from error
        done += len(next(iter(batch.values())))
        ctx.progress(done / dataset.samples, f"sample {done} of {dataset.samples}")
    rows = [_row(pair, together[pair.output], own.get(pair.output)) for pair in pairs]
    write_json(ctx.output / FILE, {"samples": dataset.samples, "data": dataset.describe(), "layers": rows})
    return {"samples": dataset.samples, "data": dataset.describe(), "layers": len(rows)}


def _in_opset_of(quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 model, in the opset of the quantized one: FP8 needs a later one than most models are written in."""
    ours, theirs = (
        next(item.version for item in each.opset_import if item.domain in ("", "ai.onnx"))
        for each in (model, quantized)
    )
    if theirs <= ours:
        return model
    graph = editable(model)
    raise_opset(graph, theirs)
    return graph.to_model()


def _row(pair: LayerPair, together: Agreement, own: Agreement | None) -> dict[str, Any]:
    """What has no value (the SQNR of equal outputs, a layer in FP32 alone) is absent."""
    row = {
        "name": pair.name,
        "type": pair.op_type,
        "output": pair.output,
        "sqnr_db": _rounded(together.sqnr_db, 3),
        "cosine": _rounded(together.cosine, 7),
        "own_sqnr_db": _rounded(own.sqnr_db, 3) if own is not None else None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


STAGE = Stage("layers", ("model", "quantized", "dataset"), run, ("onnxruntime", "onnx", "numpy"))
