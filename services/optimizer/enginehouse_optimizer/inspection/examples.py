"""The names and kinds of the features of a `tf.train.Example`, read off protobuf's wire format.

message Example   { Features features = 1; }
message Features  { map<string, Feature> feature = 1; }
message Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum


class NoExampleError(ValueError):
    """Bytes that are no such message."""


class Feature(Enum):
    """What a feature holds."""

    BYTES = "bytes"
    FLOAT = "float"
    INT64 = "int64"
    NOTHING = "nothing"


_KINDS = {1: Feature.BYTES, 2: Feature.FLOAT, 3: Feature.INT64}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def features_of(data: bytes) -> dict[str, Feature]:
    """The features of an Example.

    Raises:
        NoExampleError: the bytes are no message of that shape.
    """
    found: dict[str, Feature] = {}
    for features in _messages(memoryview(data), 1):
        for entry in _messages(features, 1):
            name = b"".join(bytes(key) for key in _messages(entry, 1))
            kind = Feature.NOTHING
            for feature in _messages(entry, 2):
                for number, _ in _fields(feature):
                    kind = _KINDS.get(number, kind)
            try:
                found[name.decode()] = kind
            except UnicodeDecodeError:
                raise NoExampleError("a feature's name is no UTF-8") from None
    return found


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == wanted:
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """A message's fields; those that are no strings, bytes or messages are skipped."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if tag & 7 == _VARINT:
            _, place = _varint(data, place)
            continue
        if tag & 7 == _LENGTH:
            length, place = _varint(data, place)
        elif tag & 7 in (_FIXED64, _FIXED32):
            length = 8 if tag & 7 == _FIXED64 else 4
        else:
            raise NoExampleError(f"it has a field of the unknown kind {tag & 7}")
        if length > len(data) - place:
            raise NoExampleError("a field is longer than what is left")
        if tag & 7 == _LENGTH:
            yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise NoExampleError("a number has no end")
