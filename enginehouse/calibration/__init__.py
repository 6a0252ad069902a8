"""Calibration tables as files: Enginehouse's JSON, TensorRT's calibration cache, and how two tables differ."""

from enginehouse.calibration.compare import TensorDifference, differences
from enginehouse.calibration.table import CalibrationTable, TensorRange, read_table, table_text
from enginehouse.calibration.tensorrt import cache_text, read_cache

__all__ = [
    "CalibrationTable",
    "TensorDifference",
    "TensorRange",
    "cache_text",
    "differences",
    "read_cache",
    "read_table",
    "table_text",
]
