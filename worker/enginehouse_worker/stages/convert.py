"""convert: a frozen GraphDef in, an ONNX model out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from enginehouse_worker.files import sole_file, write_json
from enginehouse_worker.graphs.signature_file import read_signature
from enginehouse_worker.graphs.write import write_model
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("layout", "opset")
# 13 has the per-channel DequantizeLinear; 18 is the newest that the converter writes.
_OPSETS = (13, 17, 18)


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    layout = params.text("layout", "keep", ("keep", "nchw"))
    opset = params.integer("opset", _OPSETS[1], _OPSETS[0], _OPSETS[2])
    directory = ctx.input("frozen")
    path = sole_file(directory, (".pb",), "the frozen graph")
    signature = read_signature(directory)
    from enginehouse_worker.conversion.tensorflow import convert

    graph, signature = convert(path, signature, channels_first=layout == "nchw", opset=opset, progress=ctx.progress)
    ctx.progress(0.9, "writing the ONNX model")
    write_model(ctx.output / "model.onnx", graph)
    write_json(ctx.output / "signature.json", signature.to_json())
    operators = Counter(node.op_type for node in graph.nodes)
    return {"layout": layout, "opset": opset, "operators": dict(sorted(operators.items()))}


STAGE = Stage("convert", ("frozen",), run, ("tensorflow-cpu", "tensorflow", "tf2onnx", "onnx", "numpy"))
