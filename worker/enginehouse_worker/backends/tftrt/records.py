"""Which engines a converted SavedModel holds: the files that TF-TRT writes among its assets.

A file a segment, named after it, in TFRecord framing (length, checksum, data, checksum); a record an engine. A record
is a message whose field 1, repeated, is the shape of each input that the engine was built for, and whose field 2 is
the plan. TF-TRT leaves out an engine that it could not build, and then runs that segment in TensorFlow without a word.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from enginehouse_worker.errors import WorkerError

PREFIX = "trt-serialized-engine."
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
# Of a record, enough for the first input's shape; plans are hundreds of megabytes and are not read.
_BEGINNING = 256
_LENGTH_DELIMITED = 2


def engine_batches(saved_model: Path) -> dict[str, tuple[int, ...]]:
    """For each segment with a file, the batch sizes that it has engines for, ascending.

    Raises:
        WorkerError: INTERNAL when a file is not as TF-TRT writes it.
    """
    files = sorted((saved_model / "assets").glob(f"{PREFIX}*"))
    return {path.name.removeprefix(PREFIX): tuple(sorted(_batches(path))) for path in files}


def _batches(path: Path) -> list[int]:
    found = []
    try:
        with path.open("rb") as file:
            while header := file.read(_HEADER.size):
                length, _ = _HEADER.unpack(header)
                begin = file.tell()
                found.append(_batch(file.read(min(length, _BEGINNING))))
                _skip(file, begin + length + _FOOTER_BYTES, path)
    except (IndexError, ValueError, struct.error) as error:
        raise WorkerError("INTERNAL", f"{path.name} is not as TF-TRT writes engines: {error}") from None
    return found


def _skip(file: IO[bytes], position: int, path: Path) -> None:
    if position > path.stat().st_size:
        raise ValueError("it is cut short")
    file.seek(position)


def _batch(record: bytes) -> int:
    """The first dimension of the first input's shape: record.1[0].dim(2)[0].size(1)."""
    shape = _message(record, 1)
    dimension = _message(shape, 2)
    field, at = _varint(dimension, 0)
    if field != 1 << 3:
        raise ValueError("a dimension has no size")
    return _varint(dimension, at)[0]


def _message(data: bytes, wanted: int) -> bytes:
    tag, at = _varint(data, 0)
    if tag != wanted << 3 | _LENGTH_DELIMITED:
        raise ValueError(f"field {tag >> 3} where {wanted} was expected")
    length, at = _varint(data, at)
    return data[at : at + length]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, least significant first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
