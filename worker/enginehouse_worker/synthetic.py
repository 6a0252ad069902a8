"""Synthetic inputs, for models that come without data: reproducible, and meaningless as a measure of accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.data.layouts import is_channels_first
from enginehouse_worker.digests import json_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.params import Params

DISTRIBUTIONS = ("images", "normal", "uniform")
# What a dynamic dimension other than the batch becomes. Images of fully convolutional models get a common size.
_DYNAMIC_SIZE = 32
_DYNAMIC_IMAGE_SIZE = 224
_COARSEST_GRID = 4
# The amplitude of each grid against that of the next coarser one. Natural images have about 0.5; more keeps small
# networks' inputs varied.
_FINER_STRENGTH = 0.7
# Of synthetic pixels; photographs have about as much.
_PIXEL_MEAN, _PIXEL_DEVIATION = 128, 64


class SyntheticDataset:
    """Samples of a named distribution. Sample i is the same whatever the batch size.

    "normal": mean 0, deviation 1. "uniform": [0, 1). "images" (rank-4 inputs; others are normal): smooth random images,
    noise of several scales added up as in photographs, mean 0, deviation 1; channels last or first as the input's shape
    says, with the same pixels. For UINT8 inputs their mean is 128 and their deviation 64, cut to 0 to 255;
    in the other distributions UINT8 is uniform in [0, 256). Other integers are uniform in [0, 2).

    Raises:
        WorkerError: INVALID_ARGUMENT for an unknown distribution or a bad number of samples.
    """

    def __init__(self, description: Mapping[str, Any], signature: Signature, max_samples: int | None) -> None:
        params = Params(description, ("distribution", "samples", "seed"), "synthetic")
        self._distribution = params.text("distribution", "normal", DISTRIBUTIONS)
        self._seed = params.integer("seed", 0, 0, 2**63 - 1)
        samples = params.integer("samples", 32, 1)
        self.samples = samples if max_samples is None else min(samples, max_samples)
        self._signature = signature

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        for begin in range(0, self.samples, size):
            numbers = range(begin, min(begin + size, self.samples))
            yield {
                spec.name: np.stack([self._sample(spec, position, number) for number in numbers])
                for position, spec in enumerate(self._signature.inputs)
            }

    def labels(self) -> npt.NDArray[np.int64] | None:
        return None

    def describe(self) -> dict[str, Any]:
        facts = {"distribution": self._distribution, "seed": self._seed, "samples": self.samples}
        return {"kind": "synthetic", **facts, "digest": json_digest(facts)}

    def _sample(self, spec: TensorSpec, position: int, number: int) -> Array:
        return synthetic_sample(spec, self._distribution, np.random.default_rng([self._seed, position, number]))


def synthetic_sample(spec: TensorSpec, distribution: str, random: np.random.Generator) -> Array:
    """One sample (without the batch dimension) for an input.

    Raises:
        WorkerError: INVALID_ARGUMENT for text inputs.
    """
    dtype = numpy_dtype(spec.dtype)
    if spec.dtype == "BYTES":
        raise WorkerError(
            "INVALID_ARGUMENT", f"input {spec.name!r} takes text, which has no synthetic form; give a dataset"
        )
    image = len(spec.shape) == 4
    shape = tuple(d if d > 0 else _DYNAMIC_IMAGE_SIZE if image else _DYNAMIC_SIZE for d in spec.shape[1:])
    if distribution == "images" and image and (spec.dtype == "UINT8" or dtype.kind == "f"):
        pixels = _image(shape, random)
        return _as_uint8(pixels) if spec.dtype == "UINT8" else pixels.astype(dtype)
    if dtype.kind in "iub" or spec.dtype == "BF16":
        if spec.dtype == "BF16":
            # The upper half of an FP32 value is its BF16 value, rounded towards zero.
            return (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return random.integers(0, 256 if spec.dtype == "UINT8" else 2, shape).astype(dtype)
    if distribution == "uniform":
        return random.random(shape, np.float32).astype(dtype)
    return random.standard_normal(shape, np.float32).astype(dtype)


def _image(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random image of a shape of rank 3, channels last or first."""
    if not is_channels_first(shape):
        return random_image(shape[0], shape[1], shape[2], random)
    return np.ascontiguousarray(random_image(shape[1], shape[2], shape[0], random).transpose(2, 0, 1))


def _as_uint8(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(image * _PIXEL_DEVIATION + _PIXEL_MEAN), 0, 255).astype(np.uint8)


def random_image(height: int, width: int, channels: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A smooth random image (height, width, channels): noise on grids of 4, 8, 16, ... cells, each weaker than the
    last.
    """
    image = np.zeros((height, width, channels), np.float32)
    cells, strength = _COARSEST_GRID, 1.0
    while cells <= max(_COARSEST_GRID, min(height, width)):
        grid = random.standard_normal((cells, cells, channels), np.float32)
        image += np.float32(strength) * _stretch(_stretch(grid, height, 0), width, 1)
        cells, strength = cells * 2, strength * _FINER_STRENGTH
    normalized: npt.NDArray[np.float32] = (image - image.mean()) / np.float32(max(float(image.std()), 1e-6))
    return normalized


def _stretch(grid: npt.NDArray[np.float32], size: int, axis: int) -> npt.NDArray[np.float32]:
    """Linear interpolation along an axis to `size` points."""
    cells = grid.shape[axis]
    place = np.linspace(0, cells - 1, size, dtype=np.float32)
    left = np.minimum(place.astype(np.int64), cells - 2)
    shape = [1, 1, 1]
    shape[axis] = size
    weight = (place - left).reshape(shape)
    stretched: npt.NDArray[np.float32] = (
        np.take(grid, left, axis) * (1 - weight) + np.take(grid, left + 1, axis) * weight
    )
    return stretched
