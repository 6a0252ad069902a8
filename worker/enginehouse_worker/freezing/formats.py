"""Which format an uploaded file is said to have, and whether its content agrees. Needs no framework."""

from __future__ import annotations

import zipfile
from pathlib import Path

from enginehouse_worker.archives import archive_kind
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing

KERAS, KERAS_HDF5, SAVED_MODEL, FROZEN_GRAPH = "keras", "keras_hdf5", "saved_model", "frozen_graph"
FORMATS = (KERAS, KERAS_HDF5, SAVED_MODEL, FROZEN_GRAPH)
_SUFFIXES = {
    ".keras": KERAS,
    ".h5": KERAS_HDF5,
    ".hdf5": KERAS_HDF5,
    ".zip": SAVED_MODEL,
    ".tar": SAVED_MODEL,
    ".tar.gz": SAVED_MODEL,
    ".tgz": SAVED_MODEL,
    ".pb": FROZEN_GRAPH,
}
_MEANINGS = {
    KERAS: "a Keras v3 file (.keras)",
    KERAS_HDF5: "a Keras HDF5 file (.h5)",
    SAVED_MODEL: "an archive of a SavedModel (.zip, .tar or .tar.gz)",
    FROZEN_GRAPH: "a frozen GraphDef (.pb)",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"


def uploaded_file(directory: Path) -> Path:
    """The one file of an input directory.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is none or more than one.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file())
    if len(files) != 1:
        raise WorkerError("INVALID_ARGUMENT", f"the model: expected exactly one file; found: {listing(directory)}")
    return files[0]


def format_of(path: Path) -> str:
    """The format that a file's name says.

    Raises:
        WorkerError: INVALID_ARGUMENT when the name says none.
    """
    for suffix, format_ in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return format_
    raise WorkerError(
        "INVALID_ARGUMENT",
        f"{path.name} has a name that says no format; expected one that ends in {', '.join(_SUFFIXES)}, or the format",
    )


def check_content(path: Path, format_: str) -> None:
    """Check that a file's first bytes (or an archive's members) fit its format.

    Raises:
        WorkerError: INVALID_ARGUMENT saying what the file is instead.
    """
    if path.stat().st_size == 0:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is empty (0 bytes); expected {_MEANINGS[format_]}")
    found = _content(path)
    if found == format_ or (found is None and format_ == FROZEN_GRAPH):
        return
    if found in _MEANINGS:
        instead = f"its content is {_MEANINGS[found]}: give it that format, or a name with that ending"
    else:
        instead = f"its content is {found}" if found else "its content is not, from the first bytes on"
    raise WorkerError("INVALID_ARGUMENT", f"{path.name} should be {_MEANINGS[format_]}, but {instead}")


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _content(path: Path) -> str | None:
    """One of FORMATS, words for something else that is known, or None. A frozen GraphDef has no mark."""
    if is_hdf5(path):
        return KERAS_HDF5
    kind = archive_kind(path)
    if kind is None:
        return None
    if kind != "zip":
        return SAVED_MODEL
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{path.name} is damaged or cut short: {error}") from None
    if "config.json" in names:
        return KERAS
    if any(name.rpartition("/")[2] in ("saved_model.pb", "saved_model.pbtxt") for name in names):
        return SAVED_MODEL
    return "a zip with neither Keras's config.json nor a saved_model.pb"
