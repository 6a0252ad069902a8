"""What kind of file an upload is, by its first bytes: enough to refuse a file that is not what its format says."""

from __future__ import annotations

from pathlib import Path

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb

# Longest first: ".tar.gz" ends in no other.
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
_TAR_MAGIC = 257
_HEAD = _TAR_MAGIC + 8
_SUFFIXES = {
    pb.MODEL_FORMAT_KERAS: ".keras",
    pb.MODEL_FORMAT_KERAS_HDF5: ".h5",
    pb.MODEL_FORMAT_FROZEN_GRAPH: ".pb",
    pb.MODEL_FORMAT_ONNX: ".onnx",
}
_EXPECTED = {
    pb.MODEL_FORMAT_KERAS: (("zip",), "a .keras archive (a zip file)"),
    pb.MODEL_FORMAT_KERAS_HDF5: (("hdf5",), "an HDF5 file"),
    pb.MODEL_FORMAT_SAVED_MODEL: (("zip", "tar", "gzip"), "the folder of a SavedModel as one .zip, .tar or .tar.gz"),
    pb.MODEL_FORMAT_FROZEN_GRAPH: (("other",), "a GraphDef (.pb)"),
    pb.MODEL_FORMAT_ONNX: (
        ("other", "zip", "tar", "gzip"),
        "an .onnx file, or an archive of one and its data",
    ),
}


def kind_of(path: Path) -> str:
    """One of "zip", "tar", "gzip", "hdf5", "empty" and "other"."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    return "tar" if head[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar" else "other"


def check_model_file(path: Path, model_format: pb.ModelFormat.ValueType, file_name: str) -> str:
    """The name to keep for a model's file: as given, with a suffix that says what it is.

    Raises:
        InvalidArgumentError: the file cannot be of that format.
    """
    kinds, what = _EXPECTED[model_format]
    kind = kind_of(path)
    if kind not in kinds:
        found = {"empty": "no bytes", "other": "of another kind"}.get(kind, f"a {kind} file")
        raise InvalidArgumentError(
            f"the blob ({found}) is not {what}, which {pb.ModelFormat.Name(model_format)} means: "
            "name the format that the file has"
        )
    suffix = {"zip": ".zip", "tar": ".tar", "gzip": ".tar.gz"}.get(kind, "")
    if model_format in _SUFFIXES and (kind == "other" or len(kinds) == 1):
        suffix = _SUFFIXES[model_format]
    name = file_name or "model"
    return name if name.endswith(suffix) or (suffix == ".tar.gz" and name.endswith(".tgz")) else name + suffix


def model_file(model_format: pb.ModelFormat.ValueType, file_name: str) -> str:
    """What a stage finds a model's file under, given the name that `check_model_file` kept."""
    archive = archive_suffix(file_name)
    if model_format == pb.MODEL_FORMAT_SAVED_MODEL or (model_format == pb.MODEL_FORMAT_ONNX and archive):
        return f"model{archive or '.zip'}"
    return f"model{_SUFFIXES[model_format]}"


def archive_suffix(file_name: str) -> str:
    """The suffix of an archive's name, empty for another file's."""
    name = file_name.lower()
    return next((suffix for suffix in ARCHIVE_SUFFIXES if name.endswith(suffix)), "")
