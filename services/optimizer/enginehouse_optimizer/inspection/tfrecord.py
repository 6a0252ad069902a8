"""Looks into an uploaded TFRecord file: the lengths of its records, and the features of the first."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import IO, cast

from enginehouse_optimizer.inspection.archives import PARSER_ERRORS, unpacked_limit
from enginehouse_optimizer.inspection.crc32c import masked_crc32c
from enginehouse_optimizer.inspection.examples import Feature, NoExampleError, features_of
from enginehouse_optimizer.inspection.facts import DatasetFacts, unusable

DEFAULT_IMAGE = "image/encoded"
DEFAULT_LABEL = "image/class/label"
# Length (bytes of the data) and the masked CRC-32C of its eight bytes; then the data and its masked CRC-32C.
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_MAX_RECORD_BYTES = 256 << 20
# Checksums of so many lengths are checked; the prepare stage checks every one, and the data's.
_CHECKED = 1000


def inspect_tfrecord(path: Path, image: str = "", label: str = "") -> DatasetFacts:
    """Count the records of a plain or gzip TFRecord file; whether they have labels is what the first says.

    Args:
        image, label: names of the features; those of tf.train's own image records when empty.

    Raises:
        InvalidArgumentError: it is no TFRecord file, cut short, or its first record lacks a feature.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    size = path.stat().st_size
    try:
        if packed:
            with gzip.open(path, "rb") as unpacked:
                return _inspect(cast("IO[bytes]", unpacked), unpacked_limit(size), image, label)
        with path.open("rb") as file:
            return _inspect(file, size, image, label)
    except PARSER_ERRORS as error:
        raise unusable(f"it is damaged or cut short ({error})") from None


def _inspect(file: IO[bytes], end: int, image: str, label: str) -> DatasetFacts:
    number = 0
    labelled = False
    while header := file.read(_HEADER.size):
        if len(header) < _HEADER.size:
            raise unusable(f"record {number} of the TFRecord file is cut short in its length")
        length, checksum = _HEADER.unpack(header)
        if number < _CHECKED and masked_crc32c(header[:8]) != checksum:
            what = "the file is no TFRecord file" if number == 0 else "the file is damaged there"
            raise unusable(f"the checksum of the length of record {number} is wrong; {what}")
        if length > _MAX_RECORD_BYTES or file.tell() + length + _FOOTER_BYTES > end:
            raise unusable(
                f"record {number} of the TFRecord file has {length} bytes; it is cut short or larger than "
                f"{_MAX_RECORD_BYTES} bytes"
            )
        if number == 0:
            labelled = _is_labelled(file.read(length), image, label)
        else:
            file.seek(length, 1)
        if len(file.read(_FOOTER_BYTES)) < _FOOTER_BYTES:
            raise unusable(f"record {number} of the TFRecord file is cut short")
        number += 1
    if not number:
        raise unusable("the TFRecord file has no records")
    return DatasetFacts(number, labelled)


def _is_labelled(data: bytes, image: str, label: str) -> bool:
    image = image or DEFAULT_IMAGE
    try:
        features = features_of(data)
    except NoExampleError as error:
        raise unusable(f"record 0 of the TFRecord file is no tf.train.Example: {error}") from None
    have = ", ".join(f"{name!r} ({kind.value})" for name, kind in sorted(features.items())[:16]) or "none"
    if features.get(image) is not Feature.BYTES:
        raise unusable(f"record 0 has no feature {image!r} with an image file's bytes; it has {have}")
    wanted = label or DEFAULT_LABEL
    if wanted not in features and wanted == DEFAULT_LABEL:
        return False
    if features.get(wanted) is not Feature.INT64:
        raise unusable(f"record 0 has no feature {wanted!r} with an integer, the class index; it has {have}")
    return True
