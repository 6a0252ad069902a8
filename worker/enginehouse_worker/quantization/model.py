"""From a calibration table to a quantized model: scales, placement and insertion in one step."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from enginehouse_worker import cpu
from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.metadata import QuantizationMetadata, write_metadata
from enginehouse_worker.quantization.placement import Placement, place
from enginehouse_worker.quantization.rules import ONNXRUNTIME, Dialect
from enginehouse_worker.quantization.scales import LARGEST, ActivationScale, asymmetric_scale, symmetric_scale

REDUCE_RANGE = ("auto", "on", "off")
_REDUCED_RANGE = 63.0


@dataclass(frozen=True)
class Quantization:
    """How a graph is quantized; `reduced_range`: weights have 7 bits."""

    graph: GraphIndex
    dialect: Dialect
    table: CalibrationTable
    reduced_range: bool

    @property
    def largest_weight(self) -> float:
        """The magnitude that the largest weight of a channel becomes."""
        return _REDUCED_RANGE if self.reduced_range else LARGEST[self.dialect.format]

    def place(self, excluded: frozenset[int]) -> Placement:
        """Where Q/DQ stand when some nodes stay in FP32."""
        return place(self.graph, self.dialect, excluded)

    def model(self, placement: Placement) -> onnx.ModelProto:
        """The quantized model.

        Raises:
            WorkerError: INVALID_ARGUMENT when the table lacks a tensor's range.
        """
        scales = activation_scales(placement, self.table, self.dialect)
        quantized = insert(self.graph, placement, self.dialect, scales, largest_weight=self.largest_weight)
        write_metadata(quantized, QuantizationMetadata(self.dialect.name, self.reduced_range))
        return quantized


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
        if dialect.symmetric_activations:
            scales[tensor] = symmetric_scale(value.amax, LARGEST[dialect.format])
        else:
            scales[tensor] = asymmetric_scale(value.rmin, value.rmax)
    return scales


def nothing_to_quantize(dialect: str, excluding: bool) -> WorkerError:
    """What to raise for a model that a dialect leaves in FP32 altogether; `excluding`: because of what is excluded."""
    remedy = "exclude fewer nodes" if excluding else "build it in FP32"
    return WorkerError(
        "INVALID_ARGUMENT",
        f"nothing is left to quantize: the {dialect} dialect has no 8-bit kernel for the model's operators; {remedy}",
    )


def reduces_range(choice: str, dialect: Dialect) -> bool:
    """Whether weights get 7 bits: ONNX Runtime's kernels for x86 without VNNI add two products in 16 bits."""
    if choice == "auto":
        return dialect is ONNXRUNTIME and cpu.int8_products_saturate()
    return choice == "on"
