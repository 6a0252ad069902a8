"""Fashion-MNIST at a network's input size: the IDX files of Debian's package `dataset-fashion-mnist`, upscaled."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path("/usr/share/datasets/fashion-mnist")
CLASSES = 10
SIDE = 28
# Mean and deviation of the training images' pixels, of 0 to 255.
PREPROCESSING: dict[str, Any] = {"mean": [72.94], "deviation": [90.02]}
_TOGETHER = 500


def read(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (n, 28, 28) and labels (n,) of "train" or "t10k".

    Raises:
        ValueError: a file is not what its header says.
        FileNotFoundError: naming the package that has the files.
    """
    found = []
    for kind, magic in (("images-idx3", 0x803), ("labels-idx1", 0x801)):
        path = folder / f"{part}-{kind}-ubyte.gz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: install Debian's dataset-fashion-mnist, or give --data")
        with gzip.open(path) as file:
            content = file.read()
        rank = magic & 0xFF
        header = np.frombuffer(content, ">u4", 1 + rank)
        if header[0] != magic or len(content) != 4 * (1 + rank) + int(np.prod(header[1:], dtype=np.int64)):
            raise ValueError(f"{path} is no IDX file of {kind}")
        found.append(np.frombuffer(content, np.uint8, offset=4 * (1 + rank)).reshape(header[1:].tolist()))
    images, labels = found
    if len(images) != len(labels) or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{folder} has {images.shape} images and {len(labels)} labels of {part!r}")
    return images, labels.astype(np.int64)


def interpolation(size: int, side: int = SIDE) -> npt.NDArray[np.float32]:
    """The matrix (size, side) of linear interpolation between centres of pixels, edges repeated.

    An image becomes `matrix @ image @ matrix.T`, the same in NumPy and in PyTorch.
    """
    places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.minimum(places.astype(int), side - 2)
    matrix = np.zeros((size, side), np.float32)
    rows = np.arange(size)
    matrix[rows, low] = 1 - (places - low)
    matrix[rows, low + 1] = places - low
    return matrix


def upscale(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """RGB pixels (n, size, size, 3) of grey images (n, 28, 28)."""
    matrix = interpolation(size)
    found = np.empty((len(images), size, size, 3), np.uint8)
    for begin in range(0, len(images), _TOGETHER):
        grey = np.rint(matrix @ images[begin : begin + _TOGETHER].astype(np.float32) @ matrix.T).astype(np.uint8)
        found[begin : begin + _TOGETHER] = grey[..., None]
    return found


def write(folder: Path, part: str, target: Path, size: int, count: int) -> int:
    """Write the first `count` images of a part, upscaled, as a dataset of the stages; returns how many."""
    images, labels = read(folder, part)
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "data.npz", x=upscale(images[:count], size), labels=labels[:count])
    return min(count, len(labels))
