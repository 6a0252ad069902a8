"""Quantizes weights ahead of time: INT8 or FP8 constants behind DequantizeLinear, with scales that FP16 holds."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.graphs.editing import EditableGraph, attributes
from enginehouse_worker.graphs.naming import unique_name
from enginehouse_worker.quantization.scales import LARGEST

# Eight steps of FP16's subnormal numbers. Channels whose weights are all below 6e-5 (127 of these) get fewer levels.
SMALLEST_SCALE = 2.0**-21
_INT8: np.dtype[Any] = np.dtype(np.int8)
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def fold_weights(graph: EditableGraph) -> None:
    """Replace QuantizeLinear of a constant by the 8-bit constant, in place.

    The scales become FP16 values, rounded up, and the weights are quantized with the rounded ones: so an FP16 scale
    costs no gain, and weights need not pass through FP16, in which small ones are less exact. Only symmetric INT8 and
    FP8 are folded.
    """
    readers = graph.readers()
    taken = graph.names()
    kept = []
    for node in graph.nodes:
        parameters = [graph.constants.get(name) for name in node.input] if node.op_type == "QuantizeLinear" else []
        dequantizers = [reader for reader, _ in readers.get(node.output[0], [])] if len(parameters) == 3 else []
        symmetric = bool(dequantizers) and all(
            reader.op_type == "DequantizeLinear" and list(reader.input[1:]) == list(node.input[1:])
            for reader in dequantizers
        )
        value, scale, zero_point = parameters if len(parameters) == 3 else (None, None, None)
        if not symmetric or value is None or scale is None or zero_point is None:
            kept.append(node)
            continue
        if zero_point.dtype not in (np.int8, _FP8) or zero_point.astype(np.float32).any() or scale.ndim > 1:
            kept.append(node)
            continue
        rounded = round_scales(scale)
        name = unique_name(f"{node.output[0]}/scale", taken)
        graph.constants[name] = rounded
        graph.constants[node.output[0]] = quantize(
            value, rounded, int(attributes(node).get("axis", 1)), zero_point.dtype
        )
        for reader in dequantizers:
            reader.input[1] = name
    graph.nodes[:] = kept
    graph.drop_unread()


def round_scales(scale: Array) -> Array:
    """Scales as FP16 values, none smaller than before and than `SMALLEST_SCALE`; in FP32. Those beyond FP16 stay."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
        half = np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    rounded: Array = np.where(np.isfinite(half), np.maximum(half, SMALLEST_SCALE), scale).astype(np.float32)
    return rounded


def quantize(value: Array, scale: Array, axis: int, dtype: np.dtype[Any] = _INT8) -> Array:
    """INT8 or FP8 values of weights; `scale` is () or one for each index along `axis`."""
    if scale.ndim == 1:
        shape = [1] * value.ndim
        shape[axis] = scale.size
        scale = scale.reshape(shape)
    if dtype == _FP8:
        # Beyond its range FP8 has no infinities, only NaN.
        return np.clip(value / scale, -LARGEST["fp8"], LARGEST["fp8"]).astype(dtype)
    quantized: Array = np.clip(np.rint(value / scale), -128, 127).astype(dtype)
    return quantized
