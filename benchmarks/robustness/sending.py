"""Sending malformed requests, counting how each was answered, and what else a bad client does to a port."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from robustness.case import (
    INFER,
    REGION,
    REGION_BYTES,
    REGION_OFFSET,
    SERVICE,
    SHRUNK,
    SHRUNK_BYTES,
    STREAM,
    THEIR_BYTES,
    THEIRS,
    Case,
)

# A request that nobody answers is a failure, not a reason to wait.
TIMEOUT = 60.0
# What lies in the objects around the regions; nobody may see or change it.
GUARD = b"\xa5"
# With this, a stream's error is its status.
STRICT = (("triton_grpc_error", "true"),)


@dataclass
class Answers:
    """How requests were answered: by kind and status; `wrong` are those that were answered as they must not be."""

    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[tuple[Case, str, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.by_kind.values())

    def by_status(self) -> Counter[str]:
        """All kinds together."""
        return sum(self.by_kind.values(), Counter())

    def add(self, case: Case, status: str, message: str) -> None:
        self.by_kind.setdefault(case.kind, Counter())[status] += 1
        if status not in case.allowed:
            self.wrong.append((case, status, message))


async def send(
    address: str, cases: Iterable[Case], answers: Answers, *, in_flight: int = 8, over_streams: int = 4
) -> None:
    """Send all, several at once. Every so many-th ModelInfer goes over a stream of its own instead, where its error is
    the stream's."""
    room = asyncio.Semaphore(in_flight)
    tasks: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:

        async def one(number: int, case: Case) -> None:
            try:
                if case.method == INFER and number % over_streams == over_streams - 1:
                    status, message = await _over_a_stream(channel, case.data)
                else:
                    call = channel.unary_unary(SERVICE + case.method)
                    status, message = await _status(call(case.data, timeout=TIMEOUT))
                answers.add(case, status, message)
            finally:
                room.release()

        for number, case in enumerate(cases):
            await room.acquire()
            task = asyncio.ensure_future(one(number, case))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


async def _status(call: Any) -> tuple[str, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def _over_a_stream(channel: grpc.aio.Channel, data: bytes) -> tuple[str, str]:
    call = channel.stream_stream(SERVICE + STREAM)(iter([data]), timeout=TIMEOUT, metadata=STRICT)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


class SharedObjects:
    """The shared memory that the requests name: registered by us and by "another client", with guarded surroundings."""

    def __init__(self, address: str) -> None:
        self._names = {key: f"enginehouse-{key}-{os.getpid()}" for key in (REGION, THEIRS, SHRUNK)}
        self._address = address

    def path(self, key: str) -> Path:
        return Path("/dev/shm") / self._names[key]

    def __enter__(self) -> SharedObjects:
        size = REGION_OFFSET + REGION_BYTES + 4096
        self.path(REGION).write_bytes(GUARD * REGION_OFFSET + bytes(REGION_BYTES) + GUARD * 4096)
        self.path(THEIRS).write_bytes(bytes(THEIR_BYTES) + GUARD * 4096)
        self.path(SHRUNK).write_bytes(bytes(SHRUNK_BYTES))
        assert self.path(REGION).stat().st_size == size
        self._register(REGION, REGION_OFFSET, REGION_BYTES)
        self._register(THEIRS, 0, THEIR_BYTES)  # over a connection of its own
        self._register(SHRUNK, 0, SHRUNK_BYTES)
        os.truncate(self.path(SHRUNK), 0)
        return self

    def __exit__(self, *_: object) -> None:
        for key in self._names:
            self.path(key).unlink(missing_ok=True)

    def intact(self) -> bool:
        """Whether nothing outside the regions was written."""
        mine, theirs = self.path(REGION).read_bytes(), self.path(THEIRS).read_bytes()
        outside = mine[:REGION_OFFSET] + mine[REGION_OFFSET + REGION_BYTES :] + theirs[THEIR_BYTES:]
        return set(outside) == set(GUARD)

    def _register(self, key: str, offset: int, size: int) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = pb.SystemSharedMemoryRegisterRequest(
                name=key, key=f"/{self._names[key]}", offset=offset, byte_size=size
            )
            stub.SystemSharedMemoryRegister(request, timeout=TIMEOUT)


@contextmanager
def half_open(port: int, count: int, seed: int = 0) -> Iterator[list[socket.socket]]:
    """Connections that say nothing, or begin to speak and stop: HTTP/1, garbage, HTTP/2's first bytes, half a frame."""
    random = Random(seed)
    openings = (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x01",
    )
    sockets = []
    try:
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
            opening = openings[number % 5] if number % 5 < len(openings) else random.randbytes(200)
            with suppress(OSError):  # refused at once: also an answer
                connection.sendall(opening)
            sockets.append(connection)
        yield sockets
    finally:
        for connection in sockets:
            connection.close()
