"""What quantize and sensitivity have in common: the model, its calibration table and how they become 8 bits."""

from __future__ import annotations

import onnx

from enginehouse_worker.backends.tensorrt.opsets import raise_opset
from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.editing import editable
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.quantization.insert import FP8_OPSET
from enginehouse_worker.quantization.model import REDUCE_RANGE, Quantization, reduces_range
from enginehouse_worker.quantization.rules import DIALECTS, TENSORRT_FP8, Dialect
from enginehouse_worker.stages.context import StageContext
from enginehouse_worker.stages.params import Params

PARAMS = ("dialect", "exclude", "reduce_range")


def open_quantization(ctx: StageContext, params: Params, form: str = "int8") -> Quantization:
    """The inputs `model` and `calibration`, with the parameters `dialect` and `reduce_range`.

    Args:
        form: one of `rules.FORMATS`.

    Raises:
        WorkerError: INVALID_ARGUMENT when one is missing or wrong, or the table is another model's.
    """
    params.require("dialect")
    dialect = _dialect(params, form)
    reduced = reduces_range(params.text("reduce_range", "auto", REDUCE_RANGE), dialect)
    if reduced and form != "int8":
        raise WorkerError("INVALID_ARGUMENT", f"{ctx.stage}: reduce_range is for format int8, not {form}")
    directory = ctx.input("model")
    table = CalibrationTable.read(ctx.input("calibration"))
    model = load_model(directory)
    table.check_model(file_digest(sole_file(directory, (".onnx",), "the model")))
    return Quantization(index_graph(_raised(model) if form == "fp8" else model), dialect, table, reduced)


def _dialect(params: Params, form: str) -> Dialect:
    dialect = DIALECTS[params.text("dialect", "", tuple(DIALECTS))]
    if form == "int8":
        return dialect
    if dialect.name != TENSORRT_FP8.name:
        raise WorkerError(
            "INVALID_ARGUMENT", f"quantize: format {form} is for dialect {TENSORRT_FP8.name}, not {dialect.name}"
        )
    return TENSORRT_FP8


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that has FP8; its tensors and nodes keep their names."""
    graph = editable(model)
    raise_opset(graph, FP8_OPSET)
    return graph.to_model()
