"""The framing of TFRecord files: each record's length, data, and a checksum of either."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from enginehouse_worker.data.crc32c import masked_crc32c
from enginehouse_worker.errors import WorkerError

# Length (bytes of the data) and the masked CRC-32C of its eight bytes; then the data and its masked CRC-32C.
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
MAX_RECORD_BYTES = 256 << 20


@dataclass(frozen=True)
class Record:
    """Record `number` (from 0) of a file: its data, and where in the file that lies."""

    number: int
    offset: int
    data: bytes


def read_records(file: IO[bytes]) -> Iterator[Record]:
    """The records of a file from its beginning, checked.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the record that is damaged, cut short or larger than 256 MiB.
    """
    number = offset = 0
    while header := file.read(_HEADER.size):
        if len(header) < _HEADER.size:
            raise _wrong(number, "it is cut short in its length")
        length, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != checksum:
            what = "the file is no TFRecord file" if number == 0 else "the file is damaged there"
            raise _wrong(number, f"the checksum of its length is wrong; {what}")
        if length > MAX_RECORD_BYTES:
            raise _wrong(number, f"it has {length} bytes; expected at most {MAX_RECORD_BYTES}")
        data, footer = file.read(length), file.read(_FOOTER.size)
        if len(footer) < _FOOTER.size:
            raise _wrong(number, f"it is cut short: expected {length} bytes and a checksum")
        if masked_crc32c(data) != _FOOTER.unpack(footer)[0]:
            raise _wrong(number, "the checksum of its data is wrong; the file is damaged there")
        offset += _HEADER.size
        yield Record(number, offset, data)
        offset += length + _FOOTER.size
        number += 1


def _wrong(number: int, message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"record {number} of the TFRecord file cannot be used: {message}")
