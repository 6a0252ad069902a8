"""What quantize and sensitivity have in common: the model, its calibration table and how they become INT8."""

from __future__ import annotations

from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.digests import file_digest
from enginehouse_worker.files import sole_file
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.quantization.model import REDUCE_RANGE, Quantization, reduces_range
from enginehouse_worker.quantization.rules import DIALECTS
from enginehouse_worker.stages.context import StageContext
from enginehouse_worker.stages.params import Params

PARAMS = ("dialect", "exclude", "reduce_range")


def open_quantization(ctx: StageContext, params: Params) -> Quantization:
    """The inputs `model` and `calibration`, with the parameters `dialect` and `reduce_range`.

    Raises:
        WorkerError: INVALID_ARGUMENT when one is missing or wrong, or the table is another model's.
    """
    params.require("dialect")
    dialect = DIALECTS[params.text("dialect", "", tuple(DIALECTS))]
    reduced = reduces_range(params.text("reduce_range", "auto", REDUCE_RANGE), dialect)
    directory = ctx.input("model")
    table = CalibrationTable.read(ctx.input("calibration"))
    model = load_model(directory)
    table.check_model(file_digest(sole_file(directory, (".onnx",), "the model")))
    return Quantization(index_graph(model), dialect, table, reduced)
