"""Gives a plan that was built without its weights those of the ONNX model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library
from enginehouse_worker.errors import WorkerError

# What `engine.json` calls the file, and the file: the model as it was parsed, so that the weights have the same names.
KEY, FILE = "weights", "weights.onnx"


def refit(library: Library, engine: Any, directory: Path, description: Mapping[str, Any]) -> None:
    """Fill in the weights of a deserialized engine, in place, once, before its first context; nothing for a whole plan.

    Args:
        description: the directory's `engine.json`, whose `weights` names the model of a stripped plan.

    Raises:
        WorkerError: FAILED_PRECONDITION when this TensorRT cannot do it; DATA_LOSS when the model is missing or is not
            that of the plan.
    """
    if KEY not in description:
        return
    trt = library.trt
    if not hasattr(trt, "OnnxParserRefitter"):
        library.lacks("weight stripping")
    model = directory / str(description[KEY])
    if model.resolve().parent != directory.resolve() or not model.is_file():
        raise WorkerError(
            "DATA_LOSS", f"the plan has no weights, and {description[KEY]!r}, which has them, is not there"
        )
    library.messages.take_errors()
    refitter = trt.Refitter(engine, library.logger)
    parser = trt.OnnxParserRefitter(refitter, library.logger)
    if not parser.refit_from_file(str(model)) or not refitter.refit_cuda_engine():
        missing = list(refitter.get_missing_weights())[:5]
        reason = library.messages.take_errors() or f"no weights for {', '.join(missing) or 'some layer'}"
        raise WorkerError("DATA_LOSS", f"{library.name} cannot put the weights of {model.name} into the plan: {reason}")
