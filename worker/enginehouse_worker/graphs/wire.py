"""Protobuf's wire format, for what is written in pieces (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

_LENGTH_DELIMITED = 2


def tag(field: int) -> bytes:
    """What stands before the length of a message, a string or bytes."""
    return varint(field << 3 | _LENGTH_DELIMITED)


def varint(value: int) -> bytes:
    """A non-negative integer, as lengths are written."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
