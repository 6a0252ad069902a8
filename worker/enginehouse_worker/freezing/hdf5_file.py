"""Looks through an HDF5 file's structure before Keras does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from enginehouse_worker.freezing.guarded import cpu_limit

# For reading names and attributes, which takes a fraction of a second in the largest of Keras's files.
_SECONDS = 10


@dataclass(frozen=True)
class Hdf5Facts:
    """`configuration`: the JSON of a whole model, None in a file of weights. `legacy`: laid out as Keras 2 did."""

    configuration: str | bytes | None
    legacy: bool


def probe(path: Path) -> Hdf5Facts:
    """Read all names and attributes, and no arrays. A file that keeps HDF5 in a loop ends the process (`cpu_limit`).

    Raises:
        OSError, RuntimeError, ValueError, KeyError: the file is damaged, in HDF5's words.
    """

    def look(name: str, item: Any) -> None:
        for key in item.attrs:
            item.attrs[key]

    with cpu_limit(_SECONDS), h5py.File(path, "r") as file:
        look("/", file)
        file.visititems(look)
        legacy = "layer_names" in file.attrs or "layer_names0" in file.attrs or "model_weights" in file
        return Hdf5Facts(file.attrs.get("model_config"), legacy)
