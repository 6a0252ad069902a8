"""The batches that TF-TRT is shown: to calibrate with, and to build its engines for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.datasets import Dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.synthetic import SyntheticDataset

# TF-TRT holds back calibration until all batches were seen and then builds: all of one size.
Batches = Callable[[], Iterator[dict[str, Array]]]


def calibration_batches(data: Dataset, size: int, report: Callable[[int, int], None]) -> Batches:
    """Every sample in batches of exactly `size`: the last is filled up with its own samples again.

    `report` is told the number of samples shown and of all.
    """

    def batches() -> Iterator[dict[str, Array]]:
        shown = 0
        for batch in data.batches(size):
            rows = len(next(iter(batch.values())))
            yield {name: np.take(array, np.arange(size) % rows, axis=0) for name, array in batch.items()}
            shown += rows
            report(shown, data.samples)

    return batches


def building_batches(signature: Signature, sizes: Sequence[int], report: Callable[[int], None]) -> Batches:
    """A random batch of each size, ascending: TF-TRT builds no engine for a size that fits a larger one it has.

    `report` is told each size before it is shown.
    """

    def batches() -> Iterator[dict[str, Array]]:
        for size in sorted(sizes):
            report(size)
            data = SyntheticDataset({"distribution": "normal", "samples": size}, signature, None)
            yield from data.batches(size)

    return batches


def check_convertible(signature: Signature) -> None:
    """Raise FAILED_PRECONDITION for inputs that TF-TRT's engines of fixed shapes cannot have.

    Raises:
        WorkerError: as above, naming the input and what to do.
    """
    if not signature.batched:
        raise WorkerError(
            "FAILED_PRECONDITION",
            "the model has no batch dimension, which TF-TRT's engines are built along; use backend 'tensorrt' or "
            "'tensorflow', or export the model with a dynamic batch",
        )
    for spec in signature.inputs:
        if any(size < 0 for size in spec.shape[1:]):
            raise WorkerError(
                "FAILED_PRECONDITION",
                f"input {spec.name!r} of shape {list(spec.shape)} has a dynamic dimension after the batch: TF-TRT "
                "would build an engine for each size it meets. Use backend 'tensorrt' with its option shapes, or "
                "export the model with fixed sizes",
            )
