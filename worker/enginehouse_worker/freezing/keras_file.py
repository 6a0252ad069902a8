"""Loads a Keras model file without running code that the file carries."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from enginehouse_worker.archives import MAX_RATIO
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.constants import check_finite
from enginehouse_worker.freezing.formats import KERAS
from enginehouse_worker.freezing.keras_config import Hazard, hazards

_MAX_CONFIGURATION = 64 << 20
# Members below this may shrink by any factor.
_RATIO_APPLIES_FROM = 64 << 20
_SHOWN = 1500


def load_keras_file(path: Path, format_: str, *, allow_unsafe: bool) -> Any:
    """Load a Keras v3 or HDF5 file as a `keras.Model`, for inference only.

    Args:
        format_: "keras" or "keras_hdf5"; the file's name does not matter.
        allow_unsafe: run code that the file carries.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is no Keras model, is damaged, has weights that are not finite, or
            has layers whose code is not in Keras or, unless allowed, is stored in the file (Lambda).
    """
    _refuse(path, hazards(_configuration(path, format_)), allow_unsafe)
    import keras

    try:
        # Keras goes by the name's ending.
        with tempfile.TemporaryDirectory() as directory:
            named = Path(directory) / ("model.keras" if format_ == KERAS else "model.h5")
            named.symlink_to(path.resolve())
            model = keras.models.load_model(named, compile=False, safe_mode=not allow_unsafe)
    except MemoryError:
        raise
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"Keras {keras.__version__} cannot load {path.name}: {_first(error)}. Expected a whole, undamaged model of "
            "Keras's own layers, saved with model.save()",
        ) from error
    if not isinstance(model, keras.Model):
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} holds a {type(model).__name__}, not a Keras model")
    check_weights(model, path.name)
    return model


def check_weights(model: Any, file_name: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        WorkerError: INVALID_ARGUMENT naming them.
    """
    check_finite(((str(weight.path), weight.numpy()) for weight in model.weights), file_name)


def _first(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_SHOWN] + (" ..." if len(text) > _SHOWN else "")


def _refuse(path: Path, found: list[Hazard], allow_unsafe: bool) -> None:
    code = [hazard for hazard in found if hazard.carries_code]
    custom = [hazard for hazard in found if not hazard.carries_code]
    if code and not allow_unsafe:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{path.name} would run code on loading: {_list(code)}. Replace these by Keras layers or operations, "
            "upload a SavedModel of the model, or, if you trust whoever made the file, allow it (start the optimizer "
            "with ENGINEHOUSE_ALLOW_UNSAFE_MODELS=true)",
        )
    if custom:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{path.name} needs code that is not in the file: {_list(custom)}. Upload a SavedModel (model.export()), "
            "which "
            "holds the computation itself",
        )


def _list(found: list[Hazard]) -> str:
    shown = [f"{hazard.where} {hazard.what}" for hazard in found[:8]]
    return "; ".join(shown) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")


def _configuration(path: Path, format_: str) -> Any:
    """The model's configuration as the file states it, read without Keras."""
    try:
        return json.loads(_zip_text(path) if format_ == KERAS else _hdf5_text(path))
    except WorkerError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # Bad zips, HDF5's many errors, text that is no JSON or is nested too deeply.
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is not a Keras model file: {_first(error)}") from None


def _zip_text(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > _RATIO_APPLIES_FROM and member.file_size > MAX_RATIO * max(1, member.compress_size):
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"{path.name} is refused: {member.filename!a} unpacks to more than {MAX_RATIO} times its size",
                )
        if archive.getinfo("config.json").file_size > _MAX_CONFIGURATION:
            raise WorkerError(
                "INVALID_ARGUMENT", f"{path.name} is refused: its config.json is over {_MAX_CONFIGURATION} bytes"
            )
        return archive.read("config.json")


def _hdf5_text(path: Path) -> str | bytes:
    from enginehouse_worker.freezing.hdf5_file import probe

    text = probe(path).configuration
    if text is None:
        raise WorkerError(
            "INVALID_ARGUMENT", f"{path.name} holds weights without a model; save the whole model with model.save()"
        )
    return text
