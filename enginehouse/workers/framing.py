"""Frames to and from a worker (worker/PROTOCOL.md): u32 length, JSON, descriptors beside `segment` frames."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from enginehouse.errors import InternalError

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")

# Made once: `json.dumps` with separators, and `json.loads` of bytes, make up their minds anew for each frame.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

Frame = dict[str, Any]


def encode(frame: Mapping[str, Any]) -> bytes:
    """A frame as it goes over the socket."""
    body = _encode(frame).encode()
    return _LENGTH.pack(len(body)) + body


def rights(descriptor: int) -> list[tuple[int, int, array.array[int]]]:
    """Ancillary data for `sendmsg` that passes a descriptor."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]


class Decoder:
    """Turns what arrives into frames. Holds no socket, so that it can be tested with bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Take what one `recvmsg` returned."""
        self._buffer += data
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
                self._descriptors.extend(descriptors)

    def close(self) -> None:
        """Close the descriptors whose frames did not come whole."""
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def next(self) -> tuple[Frame, int | None] | None:
        """The next whole frame, with its descriptor (the caller's to close) when it is a `segment` frame.

        Raises:
            InternalError: the worker does not speak the protocol.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES:
            raise InternalError(f"a worker's frame has {length} bytes: expected at most {MAX_FRAME_BYTES}")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        body = self._buffer[_LENGTH.size : _LENGTH.size + length]
        del self._buffer[: _LENGTH.size + length]
        try:
            frame = _decode(body.decode())
        except ValueError as error:
            raise InternalError(f"a worker's frame is not JSON: {error}") from error
        if not isinstance(frame, dict):
            raise InternalError(f"a worker's frame holds {type(frame).__name__}: expected an object")
        wants = frame.get("type") == "segment" and self._descriptors
        return frame, (self._descriptors.popleft() if wants else None)
