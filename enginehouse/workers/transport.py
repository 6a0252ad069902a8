"""The front's end of a worker's socket on an event loop: sends without blocking, in order, descriptors included."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from enginehouse.errors import EnginehouseError
from enginehouse.workers.framing import Decoder, Frame, encode, rights

# More is read in turns; a buffer of this size is made for each.
_CHUNK = 64 << 10
_ANCILLARY = socket.CMSG_SPACE(64 * 4)

OnFrame = Callable[[Frame, int | None], None]
OnEnd = Callable[[str], None]


class Transport:
    """Frames over a non-blocking Unix stream socket. One event loop's thread uses it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._open = True
        self._full = False

    def start(self, on_frame: OnFrame, on_end: OnEnd) -> None:
        """Begin to receive: `on_frame` for each frame, `on_end` once, with a reason if the peer broke the protocol."""
        self._on_frame, self._on_end = on_frame, on_end
        self._loop.add_reader(self._socket, self._readable)

    def send(self, frame: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send a frame, or queue it while the socket is full. Silently nothing when the peer is gone."""
        if not self._open:
            return
        if descriptor is not None:
            # Its owner may close it before it is sent.
            descriptor = os.dup(descriptor)
        self._unsent.append((memoryview(encode(frame)), descriptor))
        if len(self._unsent) == 1:
            self._writable()

    def close(self) -> None:
        """Stop; frames not sent are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for _, descriptor in self._unsent:
            if descriptor is not None:
                os.close(descriptor)
        self._unsent.clear()
        self._decoder.close()
        self._socket.close()

    def _writable(self) -> None:
        while self._unsent:
            data, descriptor = self._unsent[0]
            try:
                sent = (
                    self._socket.send(data) if descriptor is None else self._socket.sendmsg([data], rights(descriptor))
                )
            except BlockingIOError:
                self._full = True
                self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                # The peer is gone, which the reading side reports.
                sent = len(data)
            if descriptor is not None:
                os.close(descriptor)
            if sent < len(data):
                self._unsent[0] = (data[sent:], None)
            else:
                self._unsent.popleft()
        if self._full:
            self._full = False
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._end("")
            return
        self._decoder.feed(data, ancillary)
        try:
            while self._open and (received := self._decoder.next()) is not None:
                self._on_frame(*received)
        except (EnginehouseError, KeyError, TypeError, ValueError) as error:
            self._end(f"{type(error).__name__}: {error}")

    def _end(self, reason: str) -> None:
        with contextlib.suppress(ValueError):
            self._loop.remove_reader(self._socket)
        self._on_end(reason)
