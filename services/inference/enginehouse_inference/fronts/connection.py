"""Messages over a Unix stream socket on an event loop: gathered while the loop turns, sent at its end."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from enginehouse.workers.framing import rights
from enginehouse_inference.fronts.messages import HEADER, Kind, checked_kind

_log = structlog.get_logger("fronts")

_CHUNK = 64 << 10
_ANCILLARY = socket.CMSG_SPACE(64 * 4)

OnMessage = Callable[[Kind, memoryview, int | None], None]


class Connection:
    """One end, non-blocking. The loop's thread uses it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes] = []
        # Runs of whole messages; a descriptor goes with the first byte of its run.
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._sending = False
        self._blocked = False
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._open = True
        self.lost = asyncio.Event()

    def start(self, on_message: OnMessage) -> None:
        """Begin to receive. What the message's view looks at is valid during the call only."""
        self._on_message = on_message
        self._loop.add_reader(self._socket, self._readable)

    def send(self, kind: Kind, content: bytes = b"", descriptor: int | None = None) -> None:
        """Send a message soon; silently nothing when the other end is gone."""
        if not self._open:
            return
        if descriptor is not None:
            self._gather()
            message = HEADER.pack(len(content), kind) + content
            self._unsent.append((memoryview(message), os.dup(descriptor)))  # its owner may close it before it is sent
        else:
            self._gathered += (HEADER.pack(len(content), kind), content)
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Stop; what was not sent is dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for descriptor in (*(d for _, d in self._unsent if d is not None), *self._descriptors):
            os.close(descriptor)
        self._unsent.clear()
        self._gathered.clear()
        self._descriptors.clear()
        self._socket.close()
        self.lost.set()

    def _gather(self) -> None:
        if self._gathered:
            self._unsent.append((memoryview(b"".join(self._gathered)), None))
            self._gathered = []

    def _send(self) -> None:
        self._sending = False
        if self._open and not self._blocked:
            self._gather()
            self._write()

    def _writable(self) -> None:
        self._gather()
        self._write()

    def _write(self) -> None:
        while self._unsent:
            data, descriptor = self._unsent[0]
            try:
                sent = (
                    self._socket.send(data) if descriptor is None else self._socket.sendmsg([data], rights(descriptor))
                )
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                sent = len(data)  # the other end is gone, which the reading side sees
            if descriptor is not None:
                os.close(descriptor)
            if sent < len(data):
                self._unsent[0] = (data[sent:], None)
            else:
                self._unsent.popleft()
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        self._take_descriptors(ancillary)
        if not data:
            self.close()
            return
        try:
            if self._received:
                self._received += data
                used = self._handle(memoryview(self._received).toreadonly())
                del self._received[:used]
            else:  # as nearly always: whole messages, looked at where they are
                used = self._handle(memoryview(data))
                self._received += data[used:]
        except Exception:
            _log.exception("the other end does not speak the protocol between front and engine host")
            self.close()

    def _handle(self, data: memoryview) -> int:
        """Pass on the whole messages; returns how many bytes they were."""
        position = 0
        with data:
            while self._open and len(data) - position >= HEADER.size:
                length, number = HEADER.unpack_from(data, position)
                end = position + HEADER.size + length
                if end > len(data):
                    break
                kind = checked_kind(number)
                descriptor = self._descriptors.popleft() if kind is Kind.SEGMENT and self._descriptors else None
                with data[position + HEADER.size : end] as content:
                    self._on_message(kind, content, descriptor)
                position = end
        return position

    def _take_descriptors(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
