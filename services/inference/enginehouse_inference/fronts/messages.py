"""What a front and the engine host say to each other. Pure: bytes in and out.

A message is a little-endian u32 length, a u8 kind, and that many bytes of content. `SEGMENT` carries a descriptor
beside its first byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from enginehouse.errors import InternalError

HEADER = struct.Struct("<IB")
_CALL = struct.Struct("<QqBHIIH")
_NUMBER = struct.Struct("<Q")
_PIECE = struct.Struct("<QQ")
_PLACE = struct.Struct("<QIQ")
_SEGMENT = struct.Struct("<IQ")
_NO_DEADLINE = -1

Item = tuple[str, str]


class Kind(IntEnum):
    """Kinds of messages. The first are a front's, then the engine host's, then those of both."""

    CALL = 1
    CANCEL = 2
    LISTENING = 3
    PONG = 4
    ANSWER = 11
    ANSWER_IN_SEGMENT = 12
    ERROR = 13
    HEALTH = 14
    DRAIN = 15
    PING = 16
    SEGMENT = 21
    DROP = 22
    RELEASE = 23


# Quicker than the enumeration's own look-up.
_KINDS = {int(kind): kind for kind in Kind}


class Call(NamedTuple):
    """A call of the protocol.

    Attributes:
        method: its name.
        body: the serialized request; when `pieces` has any, without its raw input contents.
        deadline_ns: CLOCK_MONOTONIC, which is one for all processes.
        strict: of a request in a stream, that its error ends the stream.
        metadata: what of the caller's metadata the engine host reads.
        segment: the front's segment that the pieces lie in.
        pieces: offset and bytes of each raw input content.
    """

    identifier: int
    method: str
    body: bytes
    deadline_ns: int | None = None
    strict: bool = False
    metadata: Sequence[Item] = ()
    segment: int = 0
    pieces: Sequence[tuple[int, int]] = ()


def encode_call(call: Call) -> bytes:
    metadata = json.dumps(list(call.metadata)).encode() if call.metadata else b""
    method = call.method.encode()
    deadline = _NO_DEADLINE if call.deadline_ns is None else call.deadline_ns
    head = _CALL.pack(
        call.identifier, deadline, call.strict, len(call.pieces), call.segment, len(metadata), len(method)
    )
    return b"".join((head, *(_PIECE.pack(*piece) for piece in call.pieces), metadata, method, call.body))


def decode_call(content: memoryview) -> Call:
    identifier, deadline, strict, count, segment, metadata, method = _CALL.unpack_from(content)
    position = _CALL.size
    pieces = [_PIECE.unpack_from(content, position + number * _PIECE.size) for number in range(count)]
    position += count * _PIECE.size
    named = position + metadata
    items: Sequence[Item] = ()
    if metadata:
        items = [(str(key), str(value)) for key, value in json.loads(bytes(content[position:named]))]
    return Call(
        identifier=identifier,
        method=str(content[named : named + method], "utf-8"),
        body=bytes(content[named + method :]),
        deadline_ns=None if deadline == _NO_DEADLINE else deadline,
        strict=bool(strict),
        metadata=items,
        segment=segment,
        pieces=pieces,
    )


def encode_numbered(identifier: int, content: bytes = b"") -> bytes:
    """`CANCEL`, `ANSWER` and `ERROR`: of which call, and what."""
    return _NUMBER.pack(identifier) + content


def decode_numbered(content: memoryview) -> tuple[int, bytes]:
    (identifier,) = _NUMBER.unpack_from(content)
    return identifier, bytes(content[_NUMBER.size :])


def encode_place(identifier: int, segment: int, size: int) -> bytes:
    """`ANSWER_IN_SEGMENT`: of which call, and which segment of the sender begins with how many bytes of answer."""
    return _PLACE.pack(identifier, segment, size)


def decode_place(content: memoryview) -> tuple[int, int, int]:
    identifier, segment, size = _PLACE.unpack(content)
    return identifier, segment, size


def encode_segment(number: int, size: int = 0) -> bytes:
    """`SEGMENT` and `DROP`: the sender's number of it, and its bytes."""
    return _SEGMENT.pack(number, size)


def decode_segment(content: memoryview) -> tuple[int, int]:
    number, size = _SEGMENT.unpack(content)
    return number, size


def encode_release(numbers: Sequence[int]) -> bytes:
    """`RELEASE`: segments of the receiver that the sender reads no more."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


def decode_release(content: memoryview) -> Sequence[int]:
    return struct.unpack(f"<{len(content) // 4}I", content)


def encode_health(ready: bool, services: Sequence[str]) -> bytes:
    """`HEALTH`: of these services, or of the whole server when there are none."""
    return json.dumps({"ready": ready, "services": list(services)}).encode()


def decode_health(content: memoryview) -> tuple[bool, list[str]]:
    value = json.loads(bytes(content))
    return bool(value["ready"]), [str(name) for name in value["services"]]


def checked_kind(number: int) -> Kind:
    """The kind of that number.

    Raises:
        InternalError: there is none.
    """
    kind = _KINDS.get(number)
    if kind is None:
        raise InternalError(f"a message of kind {number} between front and engine host")
    return kind
