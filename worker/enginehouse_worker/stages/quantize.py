"""quantize: the FP32 model and a calibration table in, a model with Q/DQ nodes out."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any

from enginehouse_worker import cpu
from enginehouse_worker.backends.onnxruntime.fusion import optimized_operators
from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file, write_json, write_whole
from enginehouse_worker.graphs.index import GraphIndex, index_graph, load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.quantization.exclusion import excluded_nodes
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.metadata import QuantizationMetadata, write_metadata
from enginehouse_worker.quantization.placement import Placement, place
from enginehouse_worker.quantization.rules import DIALECTS, ONNXRUNTIME, Dialect
from enginehouse_worker.quantization.scales import ActivationScale, asymmetric_scale, symmetric_scale
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("dialect", "exclude", "reduce_range")
_FULL_RANGE = 127
_REDUCED_RANGE = 63


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    params.require("dialect")
    dialect = DIALECTS[params.text("dialect", "", tuple(DIALECTS))]
    reduced = _reduces_range(params.text("reduce_range", "auto", ("auto", "on", "off")), dialect)
    directory = ctx.input("model")
    table = CalibrationTable.read(ctx.input("calibration"))
    model = load_model(directory)
    digest = file_digest(sole_file(directory, (".onnx",), "the model"))
    if digest != table.model_digest:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the calibration table is for the model {table.model_digest}, not for {digest}; calibrate this model",
        )
    graph = index_graph(model)
    excluded = excluded_nodes(graph, params.strings("exclude"))
    placement = place(graph, dialect, excluded)
    scales = activation_scales(placement, table, dialect)
    ctx.progress(0.2, f"{len(placement.nodes)} operators to quantize")
    largest = _REDUCED_RANGE if reduced else _FULL_RANGE
    quantized = insert(graph, placement, dialect, scales, largest_weight=largest)
    write_metadata(quantized, QuantizationMetadata(dialect.name, reduced))
    path = ctx.output / "model.onnx"
    write_whole(path, quantized.SerializeToString())
    if (directory / "signature.json").is_file():
        shutil.copyfile(directory / "signature.json", ctx.output / "signature.json")
    else:
        write_json(ctx.output / "signature.json", model_signature(directory, model).to_json())
    result: dict[str, Any] = {
        "dialect": dialect.name,
        "reduced_range": reduced,
        "quantized_operators": _operator_counts(graph, placement.nodes),
        "float_operators": _operator_counts(graph, set(range(len(graph.nodes))) - placement.nodes),
        "quantized_tensors": len(placement.range_of),
        "quantized_weights": len(placement.weights),
        "excluded_nodes": len(excluded),
    }
    if dialect is ONNXRUNTIME:
        ctx.progress(0.6, "ONNX Runtime optimizes the quantized graph")
        result["optimized_operators"] = optimized_operators(path, {})
    return result


def activation_scales(placement: Placement, table: CalibrationTable, dialect: Dialect) -> dict[str, ActivationScale]:
    """The scale of each tensor that a placement quantizes.

    Raises:
        WorkerError: INVALID_ARGUMENT when the table lacks a tensor's range.
    """
    scales = {}
    for tensor, source in placement.range_of.items():
        if source not in table.tensors:
            raise WorkerError("INVALID_ARGUMENT", f"the calibration table has no range for tensor {source!r}")
        value = table.tensors[source]
        symmetric = dialect.symmetric_activations
        scales[tensor] = symmetric_scale(value.amax) if symmetric else asymmetric_scale(value.rmin, value.rmax)
    return scales


def _reduces_range(choice: str, dialect: Dialect) -> bool:
    """Whether weights get 7 bits: ONNX Runtime's kernels for x86 without VNNI add two products in 16 bits."""
    if choice == "auto":
        return dialect is ONNXRUNTIME and cpu.int8_products_saturate()
    return choice == "on"


def _operator_counts(graph: GraphIndex, numbers: frozenset[int] | set[int]) -> dict[str, int]:
    return dict(sorted(Counter(graph.nodes[n].op_type for n in numbers).items()))


STAGE = Stage("quantize", ("model", "calibration"), run, ("onnxruntime", "onnx", "numpy"))
