"""preprocess: a model that takes normalized FP32 images in, the same model that takes UINT8 pixels out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from enginehouse_worker.data.preprocessing import PARAMETER, read_preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_json
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, (PARAMETER,), ctx.stage)
    params.require(PARAMETER)
    preprocessing = read_preprocessing(params)
    if preprocessing is None:
        raise WorkerError("INVALID_ARGUMENT", "preprocess: parameter 'preprocessing' is missing")
    from enginehouse_worker.conversion.preprocessing import fold_preprocessing
    from enginehouse_worker.graphs.editing import editable
    from enginehouse_worker.graphs.index import load_model
    from enginehouse_worker.graphs.signature import model_signature
    from enginehouse_worker.graphs.write import write_model

    directory = ctx.input("model")
    model = load_model(directory)
    signature = model_signature(directory, model)
    graph = editable(model)
    del model
    signature = fold_preprocessing(graph, signature, preprocessing)
    write_model(ctx.output / "model.onnx", graph)
    write_json(ctx.output / "signature.json", signature.to_json())
    operators = Counter(node.op_type for node in graph.nodes)
    return {PARAMETER: preprocessing.to_json(), "operators": dict(sorted(operators.items()))}


STAGE = Stage("preprocess", ("model",), run, ("onnxruntime", "onnx", "numpy"))
