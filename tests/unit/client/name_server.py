"""A DNS server on a UDP port of this machine: one name, whose IPv4 addresses a test changes."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_A, _IN = 1, 1
_ANSWER, _HEADER = 0x8180, struct.Struct(">HHHHHH")


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an A record with `ips`, and every other with nothing."""

    def __init__(self, *ips: str) -> None:
        self.ips = ips
        self.asked = 0
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        number = _HEADER.unpack_from(data)[0]
        end = data.index(b"\0", _HEADER.size) + 1
        kind = struct.unpack_from(">H", data, end)[0]
        question = data[_HEADER.size : end + 4]
        ips = self.ips if kind == _A else ()
        self.asked += kind == _A
        # A pointer to the name in the question, and no time to live.
        answers = b"".join(
            struct.pack(">HHHIH", 0xC00C, _A, _IN, 0, 4) + ipaddress.IPv4Address(ip).packed for ip in ips
        )
        assert self._transport is not None
        self._transport.sendto(_HEADER.pack(number, _ANSWER, 1, len(ips), 0, 0) + question + answers, addr)


@asynccontextmanager
async def name_server(*ips: str) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(*ips), local_addr=("127.0.0.1", 0))
    server.port = transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        transport.close()
