"""`signature.json`, which a stage writes beside its model."""

from __future__ import annotations

from pathlib import Path

from enginehouse_worker.backends.base import Signature
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json

FILE = "signature.json"


def read_signature(directory: Path) -> Signature:
    """Read a stage's `signature.json`.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is missing or malformed.
    """
    value = read_json(directory / FILE)
    try:
        return Signature.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{FILE} is malformed: {error!r}") from None
