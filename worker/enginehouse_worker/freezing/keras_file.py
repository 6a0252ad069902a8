"""Loads a Keras model file without running code that the file carries."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginehouse_worker.errors import WorkerError


def load_keras_file(path: Path) -> Any:
    """Load a `.keras` or `.h5` file as a `keras.Model`, for inference only.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is no Keras model, or has layers whose code is not in Keras or is
            stored in the file (Lambda).
    """
    lambdas = [str(layer.get("name")) for layer in _layers(_configuration(path)) if layer["class"] == "Lambda"]
    if lambdas:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{path.name} has Lambda layers ({', '.join(lambdas)}), whose code would run on loading; replace them by "
            "Keras layers or operations",
        )
    import keras

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"Keras {keras.__version__} cannot load {path.name}: {str(error).strip()[:2000]}. Expected a model of "
            "Keras's own layers, saved with model.save()",
        ) from error
    if not isinstance(model, keras.Model):
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} holds a {type(model).__name__}, not a Keras model")
    return model


def _configuration(path: Path) -> Any:
    """The model's configuration as the file states it, read without Keras."""
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        import h5py

        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            if text is None:
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"{path.name} holds weights without a model; save the whole model with model.save()",
                )
            return json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is not a Keras model file: {error}") from None


def _layers(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a configuration that names a class, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            inner = value.get("config")
            name = value.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
            yield {"class": value["class_name"], "name": name}
        for item in value.values():
            yield from _layers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _layers(item)
