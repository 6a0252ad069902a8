"""Files that are there whole or not at all, and the files of an input directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from enginehouse_worker.errors import WorkerError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, make it durable, and rename it there: a reader never sees half of it."""
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[Any]) -> None:
    """Write a file as `write_whole`, from pieces of bytes or what is like them that are made one at a time."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys (numbers finite: JSON has no NaN)."""
    write_whole(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is no such file, or it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise WorkerError(
            "INVALID_ARGUMENT", f"{path.parent} has no {path.name}; found: {listing(path.parent)}"
        ) from None
    except (OSError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} holds {type(value).__name__}; expected an object")
    return value


def sole_file(directory: Path, suffixes: Sequence[str], what: str) -> Path:
    """The one file with one of the suffixes.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is none or more than one.
    """
    found = sorted(p for p in directory.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    if len(found) != 1:
        wanted = " or ".join(suffixes)
        have = listing(directory)
        raise WorkerError("INVALID_ARGUMENT", f"{what}: expected exactly one {wanted} file; found: {have}")
    return found[0]


def listing(directory: Path) -> str:
    """The names in a directory, for messages."""
    names = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
