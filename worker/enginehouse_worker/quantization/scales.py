"""Scales and zero points from ranges, and quantized constants (8-bit linear quantization as ONNX defines it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array

# Below it a channel of weights is as good as zero, and its scale only has to be a positive number.
_SMALLEST_SCALE = 1e-10
# An INT32 bias keeps two bits of headroom for the sum it is added to.
_LARGEST_BIAS = 2.0**29


# The greatest E4M3 number (OCP's "FN" variant, which ONNX calls FLOAT8E4M3FN).
LARGEST = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True)
class ActivationScale:
    """`real = scale * (quantized - zero_point)`; UINT8 when not `symmetric`, else INT8 or FP8 and no zero point."""

    scale: float
    zero_point: int
    symmetric: bool


def symmetric_scale(amax: float, largest: float = LARGEST["int8"]) -> ActivationScale:
    """[-amax, amax] over [-largest, largest]. A tensor that was always 0 gets any scale: here that of 1."""
    return ActivationScale(float(np.float32((amax or 1.0) / largest)), 0, True)


def asymmetric_scale(rmin: float, rmax: float) -> ActivationScale:
    """UINT8 over [rmin, rmax] widened to hold 0, which stays exact (padding and ReLU produce it)."""
    low, high = min(rmin, 0.0), max(rmax, 0.0)
    scale = np.float32((high - low) / 255.0 or 1.0 / 255.0)
    return ActivationScale(float(scale), int(np.clip(np.rint(-low / float(scale)), 0, 255)), False)


def weight_scales(
    weights: Array, axis: int | None, *, largest: float, smallest: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Symmetric scales: one per index of `axis` (shape (n,)), or one for all (shape ()).

    `largest` is the magnitude that the largest weight becomes: 127, 63 where kernels add two products in 16 bits, or
    FP8's 448.
    `smallest` bounds the scales from below (see `bias_floor`).
    """
    if axis is None:
        amax = np.asarray(np.abs(weights).max(initial=0.0))
    else:
        amax = np.abs(weights).max(axis=tuple(i for i in range(weights.ndim) if i != axis), initial=0.0)
    scales = np.maximum(amax.astype(np.float64) / largest, _SMALLEST_SCALE)
    if smallest is not None:
        scales = np.maximum(scales, smallest)
    return scales.astype(np.float32)


def bias_floor(bias: Array, input_scale: float) -> npt.NDArray[np.float32]:
    """The weight scales below which a bias would overflow INT32, whose scale is input scale x weight scale."""
    return (np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS)).astype(np.float32)


def quantize_weights(weights: Array, scales: npt.NDArray[np.float32], axis: int | None, largest: float) -> Array:
    """INT8 weights, rounded half to even, in [-largest, largest]."""
    if axis is not None:
        shape = [1] * weights.ndim
        shape[axis] = -1
        scales = scales.reshape(shape)
    return np.clip(np.rint(weights / scales), -largest, largest).astype(np.int8)


def quantize_bias(bias: Array, scales: npt.NDArray[np.float32]) -> Array:
    """INT32 bias; `scales` are input scale x weight scale, per channel or one."""
    limit = 2.0**31 - 1
    return np.clip(np.rint(bias.astype(np.float64) / scales.astype(np.float64)), -limit, limit).astype(np.int32)
