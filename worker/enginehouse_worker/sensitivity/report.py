"""`sensitivity.json`: what each layer costs, and which ones to leave in FP32."""

from __future__ import annotations

from pathlib import Path

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json

FILE = "sensitivity.json"


def read_excluded(directory: Path, dialect: str) -> tuple[str, ...]:
    """The names of the nodes that a sensitivity stage left in FP32.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is no such file, or it is about another dialect.
    """
    report = read_json(directory / FILE)
    if report.get("dialect") != dialect:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{FILE} was measured in the dialect {report.get('dialect')!r}, not in {dialect!r}; measure it there",
        )
    excluded = report.get("excluded")
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise WorkerError("INVALID_ARGUMENT", f"{FILE} is malformed: `excluded` is no list of names")
    return tuple(excluded)
