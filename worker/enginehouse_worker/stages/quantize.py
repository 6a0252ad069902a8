"""quantize: the FP32 model and a calibration table in, a model with Q/DQ nodes out."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any

from enginehouse_worker.backends.onnxruntime.fusion import optimized_operators
from enginehouse_worker.files import write_json, write_whole
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.quantization.exclusion import excluded_nodes
from enginehouse_worker.quantization.model import nothing_to_quantize
from enginehouse_worker.quantization.rules import FORMATS, ONNXRUNTIME
from enginehouse_worker.sensitivity.report import read_excluded
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params
from enginehouse_worker.stages.quantization import PARAMS, open_quantization


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, (*PARAMS, "format"), ctx.stage)
    form = params.text("format", "int8", FORMATS)
    quantization = open_quantization(ctx, params, form)
    graph, dialect = quantization.graph, quantization.dialect
    directory = ctx.input("model")
    excluded = excluded_nodes(graph, params.strings("exclude"))
    automatic = frozenset[int]()
    if "sensitivity" in ctx.inputs:
        automatic = excluded_nodes(graph, read_excluded(ctx.inputs["sensitivity"], dialect.name)) - excluded
    placement = quantization.place(excluded | automatic)
    if not placement.nodes:
        raise nothing_to_quantize(dialect.name, bool(excluded | automatic))
    ctx.progress(0.2, f"{len(placement.nodes)} operators to quantize")
    quantized = quantization.model(placement)
    path = ctx.output / "model.onnx"
    write_whole(path, quantized.SerializeToString())
    if (directory / "signature.json").is_file():
        shutil.copyfile(directory / "signature.json", ctx.output / "signature.json")
    else:
        write_json(ctx.output / "signature.json", model_signature(directory, graph.model).to_json())
    result: dict[str, Any] = {
        "dialect": dialect.name,
        "format": form,
        "reduced_range": quantization.reduced_range,
        "quantized_operators": _operator_counts(graph, placement.nodes),
        "float_operators": _operator_counts(graph, set(range(len(graph.nodes))) - placement.nodes),
        "quantized_tensors": len(placement.range_of),
        "quantized_weights": len(placement.weights),
        "excluded_nodes": len(excluded | automatic),
        "automatically_excluded_nodes": len(automatic),
    }
    if dialect is ONNXRUNTIME:
        ctx.progress(0.6, "ONNX Runtime optimizes the quantized graph")
        result["optimized_operators"] = optimized_operators(path, {})
    return result


def _operator_counts(graph: GraphIndex, numbers: frozenset[int] | set[int]) -> dict[str, int]:
    return dict(sorted(Counter(graph.nodes[n].op_type for n in numbers).items()))


STAGE = Stage("quantize", ("model", "calibration", "sensitivity"), run, ("onnxruntime", "onnx", "numpy"))
