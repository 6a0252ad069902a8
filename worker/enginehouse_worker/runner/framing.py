"""Frames on a Unix stream socket: a little-endian u32 length, UTF-8 JSON, and descriptors beside `segment` frames."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")
# Below the size from which the C library maps and unmaps each block: that costs more than the rest of a small frame.
_CHUNK = 64 << 10
# Linux allows 253 descriptors in one message; ours carry one each, but several messages may be read together.
_ANCILLARY = socket.CMSG_SPACE(64 * 4)
# Made once: `json.dumps` with separators, and `json.loads` of bytes, make up their minds anew for each frame.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decode = json.JSONDecoder().decode


class BadFrameError(Exception):
    """A frame that cannot be understood. The stream goes on behind it."""


class Channel:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._skip = 0

    def send(self, frame: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send a frame, with a descriptor when it is a `segment` frame.

        Raises:
            OSError: the peer is gone.
        """
        body = _encode(frame).encode()
        data = memoryview(_LENGTH.pack(len(body)) + body)
        with self._sending:
            if descriptor is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
                data = data[self._socket.sendmsg([data], rights) :]
            if data:
                self._socket.sendall(data)

    def receive(self) -> tuple[dict[str, Any], int | None] | None:
        """The next frame, with the descriptor of a `segment` frame (the caller's to close); None at the end.

        Raises:
            BadFrameError: a frame is too long or not a JSON object; the next call reads the frame behind it.
        """
        while True:
            frame = self._next()
            if frame is not None:
                wants = frame.get("type") == "segment"
                return frame, (self._descriptors.popleft() if wants and self._descriptors else None)
            if not self._fill():
                return None

    def close(self) -> None:
        self._socket.close()

    def _next(self) -> dict[str, Any] | None:
        if len(self._buffer) < _LENGTH.size or self._skip:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES:
            arrived = min(len(self._buffer) - _LENGTH.size, length)
            self._skip = length - arrived
            del self._buffer[: _LENGTH.size + arrived]
            raise BadFrameError(f"a frame of {length} bytes: expected at most {MAX_FRAME_BYTES}")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        body = bytes(memoryview(self._buffer)[_LENGTH.size : _LENGTH.size + length])
        del self._buffer[: _LENGTH.size + length]
        return parse(body)

    def _fill(self) -> bool:
        """Read what there is; False at the end of the stream."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
                self._descriptors.extend(descriptors)
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += data[skipped:]
        return bool(data)


def parse(body: bytes) -> dict[str, Any]:
    """A frame's JSON object.

    Raises:
        BadFrameError: it is none.
    """
    try:
        frame = _decode(body.decode())
    except ValueError as error:
        raise BadFrameError(f"a frame that is not JSON: {error}") from None
    if not isinstance(frame, dict):
        raise BadFrameError(f"a frame that holds {type(frame).__name__}: expected a JSON object")
    return frame


def take_socket(descriptor: int) -> socket.socket:
    """The socket behind an inherited descriptor, which no child of ours inherits in turn."""
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(True)
    return sock
