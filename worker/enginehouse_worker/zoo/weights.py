"""Loads a Keras weights file into a network of the zoo."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from enginehouse_worker.archives import archive_kind
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.formats import is_hdf5
from enginehouse_worker.freezing.keras_file import check_weights

_SHOWN = 1500


def load_weights(model: Any, path: Path) -> None:
    """Load weights in place from what Keras saves: .weights.h5, the older .h5 (weights or whole model), or .keras.

    Which of them a file is, its content says. Nothing but arrays is read from it.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is none of these or is damaged, or when a layer's weights do not
            fit, naming the layer and the shapes; also when weights are not finite.
    """
    try:
        with tempfile.TemporaryDirectory() as directory:
            # Keras goes by the name's ending.
            named = Path(directory) / f"model{_ending(path)}"
            named.symlink_to(path.resolve())
            model.load_weights(named)
    except (WorkerError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the weights of {path.name} do not fit {model.name} with {model.output_shape[-1]} classes: "
            f"{text[:_SHOWN]}. "
            "Expected a file that Keras saved from this architecture, its classifier included",
        ) from error
    check_weights(model, path.name)


def _ending(path: Path) -> str:
    if archive_kind(path) == "zip":
        return ".keras"
    if not is_hdf5(path):
        size = path.stat().st_size
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{path.name} ({size} bytes) is no weights file; expected Keras's .weights.h5, .h5 or .keras",
        )
    from enginehouse_worker.freezing.hdf5_file import probe

    return ".h5" if probe(path).legacy else ".weights.h5"
