"""scikit-learn's digits: 1,797 labelled 8x8 images of handwritten digits, shipped inside that package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.errors import FailedPreconditionError

HELD_OUT = 449  # a quarter
CALIBRATION = 256


@dataclass(frozen=True)
class Digits:
    """Images are (N, 8, 8, 1) float32 in [0, 1]; labels are (N,) int64."""

    train_images: npt.NDArray[Any]
    train_labels: npt.NDArray[Any]
    test_images: npt.NDArray[Any]
    test_labels: npt.NDArray[Any]

    def save_training(self, path: Path) -> None:
        """Write what `train_digits.py` reads."""
        np.savez(path, train_images=self.train_images, train_labels=self.train_labels)

    def save_calibration(self, path: Path) -> None:
        """Write a calibration dataset: training images only, so that the held-out ones stay unseen."""
        np.savez(path, images=self.train_images[:CALIBRATION], labels=self.train_labels[:CALIBRATION])

    def save_verification(self, path: Path) -> None:
        """Write the held-out images with their labels."""
        np.savez(path, images=self.test_images, labels=self.test_labels)


def load_digits(seed: int = 0) -> Digits:
    """The digits, shuffled by `seed` and split in training and held-out images.

    Raises:
        FailedPreconditionError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise FailedPreconditionError(
            "the demo's images ship with scikit-learn, which is not installed: pip install 'enginehouse[demo]'"
        ) from error
    raw = sklearn_digits()
    images = (raw.images / 16.0).astype(np.float32)[..., np.newaxis]
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], raw.target[order].astype(np.int64)
    return Digits(images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT])
