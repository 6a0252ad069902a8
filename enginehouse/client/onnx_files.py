"""Which files beside an .onnx file belong to it: its tensors may keep their bytes outside.

Walks the file's protobuf messages in place, into those only that may hold tensors: the `onnx` package is no dependency
of the SDK, and a model may be larger than memory. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from enginehouse.errors import InvalidArgumentError

_MAX_DEPTH = 64
# Message to (field number to the message in it). A key or value of external_data is a string.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def external_files(path: Path) -> list[str]:
    """Paths of the files that hold tensors of an .onnx file, relative to its folder, each once.

    Of a file that cannot be read there are none: to refuse it is the optimizer's part, which says more of it.

    Raises:
        InvalidArgumentError: such a path leaves the file's folder or names no file.
    """
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            locations = sorted(set(_locations(data, 0, len(data), "Model", 0)))
        except ValueError:
            return []
    root = path.parent.resolve()
    for location in locations:
        relative = PurePosixPath(location)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in location:
            raise InvalidArgumentError(f"{path} keeps tensors in {location!r}, outside its folder: that is not taken")
        target = root / relative
        if not target.is_file():
            raise InvalidArgumentError(f"{path} keeps tensors in {location!r}, which is not in {path.parent}")
    return locations


def _locations(data: Any, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("messages nested too deeply")
    for number, begin, stop in _fields(data, start, end):
        inner = _FIELDS[kind].get(number)
        if inner == "Entry":
            key, value = _entry(data, begin, stop)
            if key == b"location":
                yield value.decode()
        elif inner is not None:
            yield from _locations(data, begin, stop, inner, depth + 1)


def _entry(data: Any, start: int, end: int) -> tuple[bytes, bytes]:
    parts = {number: bytes(data[begin:stop]) for number, begin, stop in _fields(data, start, end)}
    return parts.get(1, b""), parts.get(2, b"")


def _fields(data: Any, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the length-delimited fields of a message; the others are passed over."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError(f"a field at byte {at} is longer than its message")
            yield tag >> 3, at, at + size
            at += size
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
    if at != end:
        raise ValueError(f"a message ends at byte {end}, inside a field")


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"no number at byte {at}")
