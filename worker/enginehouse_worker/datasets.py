"""Calibration and verification data: the door to `.npz` files and named synthetic distributions, read in batches.

What was uploaded as image files or TFRecords is an `.npz` of UINT8 pixels by now: the prepare stage made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.data.npz import NpzDataset
from enginehouse_worker.data.preprocessing import Preprocessing, read_preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.synthetic import SyntheticDataset

__all__ = ["Dataset", "Preprocessing", "open_dataset", "read_preprocessing"]


class Dataset(Protocol):
    """Samples for every input of a model."""

    samples: int

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Inputs by name, `size` samples at a time (the last batch may be smaller)."""

    def labels(self) -> npt.NDArray[np.int64] | None:
        """One class index a sample, where there are labels."""

    def describe(self) -> dict[str, Any]:
        """What the data is, with its digest."""


def open_dataset(
    directory: Path | None,
    synthetic: Mapping[str, Any] | None,
    signature: Signature,
    max_samples: int | None,
    preprocessing: Preprocessing | None = None,
) -> Dataset:
    """The data a stage was given: a directory, or a synthetic description when there is none.

    `preprocessing` applies to UINT8 images, channels last, for a floating-point input; other arrays and synthetic data
    are what the model takes already.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is neither or both, or the data does not fit the model.
    """
    if not signature.batched:
        raise WorkerError("INVALID_ARGUMENT", f"the model takes no batches of samples, as data come: {_why(signature)}")
    if (directory is None) == (synthetic is None):
        wrong = "neither" if directory is None else "both"
        raise WorkerError("INVALID_ARGUMENT", f"give a `dataset` input or `synthetic` parameters; {wrong} were given")
    if directory is not None:
        return NpzDataset(directory, signature, max_samples, preprocessing)
    return SyntheticDataset(synthetic or {}, signature, max_samples)


def _why(signature: Signature) -> str:
    """Why a model is not batched, and what to do."""
    fixed = [spec for spec in (*signature.inputs, *signature.outputs) if not spec.shape or spec.shape[0] != -1]
    if not fixed:
        return "what it makes of one sample depends on the others in the batch"
    named = ", ".join(f"{spec.name!r} of shape {list(spec.shape)}" for spec in fixed[:4])
    return (
        f"dimension 0 of every input and output must be a dynamic batch, but it is fixed in {named}; export the model "
        "with a dynamic batch"
    )
