"""Loads the weights that an ONNX file keeps in other files of its folder, and of no other place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.tensor_sizes import element_bits, elements
from enginehouse_worker.graphs.write import check_size

_KEYS = ("location", "offset", "length", "checksum")


def load_external_data(tensors: Iterable[onnx.TensorProto], model: Path) -> None:
    """Read external tensors' data into them, in place.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensor when its file is missing, outside the model's folder, a link, or
            too short; FAILED_PRECONDITION when all tensors together are larger than one ONNX file can be.
    """
    external = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]
    places = [(tensor, *_place(tensor, model)) for tensor in external]
    check_size(sum(length for *_, length in places))
    for tensor, path, offset, length in places:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _place(tensor: onnx.TensorProto, model: Path) -> tuple[Path, int, int]:
    """The file, offset and length in bytes of a tensor's data, checked against the file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _inside(tensor, location, model)
    bits = element_bits(tensor.data_type)
    if bits is None or tensor.data_type == onnx.TensorProto.STRING or any(size < 0 for size in tensor.dims):
        raise _wrong(tensor, "has a type or shape that external data cannot have")
    expected = (elements(tensor.dims) * bits + 7) // 8
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", "") or expected)
    except ValueError:
        raise _wrong(tensor, f"has an external offset or length that is no number: {entries}") from None
    size = path.stat().st_size
    if length != expected or offset < 0 or offset + length > size:
        raise _wrong(
            tensor,
            f"of {expected} bytes is to be {length} bytes from byte {offset} of {location!r}, which has {size}",
        )
    return path, offset, length


def _inside(tensor: onnx.TensorProto, location: str, model: Path) -> Path:
    """The file at a location relative to the model's folder, reached through no link."""
    parts = PurePosixPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive or "\\" in location
    if not parts or absolute or ".." in parts or "\0" in location:
        raise _wrong(
            tensor, f"has its data in {location!r}; expected a file in the model's own folder, without '..' or links"
        )
    path = model.parent
    for part in parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            raise _wrong(
                tensor,
                f"has its data in {location!r}, which is not there; upload a .zip or .tar of the model and its data",
            ) from None
        if stat.S_ISLNK(mode):
            raise _wrong(tensor, f"has its data in {location!r}, which is a link; links are not followed")
    if not stat.S_ISREG(mode):
        raise _wrong(tensor, f"has its data in {location!r}, which is no file")
    return path


def _wrong(tensor: onnx.TensorProto, what: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"tensor {tensor.name!r} {what}")
