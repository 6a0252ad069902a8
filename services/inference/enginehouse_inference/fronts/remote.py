"""The engine host behind a socket, as a front process sees it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import message_factory
from google.rpc import status_pb2
from tritonclient.grpc import service_pb2

from enginehouse.errors import EnginehouseError, InternalError, UnavailableError
from enginehouse.rpc.status import from_proto
from enginehouse.workers.segments import Segment, SegmentMap, SegmentPool, aligned
from enginehouse_inference.fronts import messages
from enginehouse_inference.fronts.connection import Connection
from enginehouse_inference.fronts.messages import Call, Item, Kind
from enginehouse_inference.protocol.wire import split
from enginehouse_inference.service.host import Metadata
from enginehouse_inference.service.local import TRACE_KEYS

# Larger requests go through shared memory: below it a socket costs less than telling of memory and giving it back.
INLINE_BYTES = 16 << 10
_RAW_INPUT = (service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3) | 2
_RESPONSES = {
    method.name: message_factory.GetMessageClass(method.output_type)
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
}

OnHealth = Callable[[bool, Sequence[str]], None]


class RemoteHost:
    """An `EngineHost`. Every call fails with UnavailableError once the connection is lost.

    Args:
        on_health: told what the engine host says of services' health.
        on_drain: told when the engine host wants this front to end.
        keep_bytes: of free shared memory to keep for the next requests.
    """

    def __init__(
        self, connection: Connection, on_health: OnHealth, on_drain: Callable[[], None], keep_bytes: int
    ) -> None:
        self._connection = connection
        self._on_health, self._on_drain = on_health, on_drain
        self._pool = SegmentPool(self._announce, self._drop, keep_bytes)
        self._lent: dict[int, Segment] = {}
        self._theirs = SegmentMap()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._identifiers = itertools.count(1)
        connection.start(self._receive)

    async def infer(self, message: bytes, deadline_ns: int | None, metadata: Metadata) -> bytes:
        """See `EngineHost.infer`."""
        return await self._infer("ModelInfer", message, deadline_ns, False, metadata)

    async def infer_in_stream(self, message: bytes, strict: bool, metadata: Metadata) -> bytes:
        """See `EngineHost.infer_in_stream`."""
        return await self._infer("ModelStreamInfer", message, None, strict, metadata)

    async def manage(self, method: str, request: Any) -> Any:
        """See `EngineHost.manage`."""
        answer = await self._call(Call(next(self._identifiers), method, request.SerializeToString()))
        return _RESPONSES[method].FromString(answer)

    async def _infer(
        self, method: str, message: bytes, deadline_ns: int | None, strict: bool, metadata: Metadata
    ) -> bytes:
        traced = _traced(metadata)
        identifier = next(self._identifiers)
        if len(message) >= INLINE_BYTES:
            try:
                rest, raw = split(message, _RAW_INPUT)
            except ValueError:
                rest, raw = b"", []  # it is no message, which the engine host says
            if raw:
                segment, pieces = self._lend(raw)
                del raw  # views of the message
                return await self._call(
                    Call(identifier, method, rest, deadline_ns, strict, traced, segment.id, pieces), segment
                )
        return await self._call(Call(identifier, method, message, deadline_ns, strict, traced))

    def _lend(self, raw: Sequence[memoryview]) -> tuple[Segment, list[tuple[int, int]]]:
        """Copy tensors into a segment, which is the engine host's until it gives it back."""
        segment = self._pool.acquire(sum(aligned(len(part)) for part in raw))
        memory, offset = segment.view, 0
        pieces: list[tuple[int, int]] = []
        for part in raw:
            memory[offset : offset + len(part)] = part
            pieces.append((offset, len(part)))
            offset += aligned(len(part))
        return segment, pieces

    async def _call(self, call: Call, segment: Segment | None = None) -> bytes:
        if self._connection.lost.is_set():
            raise _lost()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[call.identifier] = future
        if segment is not None:
            self._lent[segment.id] = segment
        self._connection.send(Kind.CALL, messages.encode_call(call))
        try:
            return await future
        except asyncio.CancelledError:
            if self._waiting.pop(call.identifier, None) is not None:
                self._connection.send(Kind.CANCEL, messages.encode_numbered(call.identifier))
            raise

    def lose(self) -> None:
        """The engine host is gone: fail what waits for it."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(_lost())

    def _receive(self, kind: Kind, content: memoryview, descriptor: int | None) -> None:
        if kind is Kind.ANSWER:
            identifier, answer = messages.decode_numbered(content)
            self._settle(identifier, answer)
        elif kind is Kind.ANSWER_IN_SEGMENT:
            identifier, segment, size = messages.decode_place(content)
            answer = bytes(self._theirs.view(segment, 0, size)) if identifier in self._waiting else b""
            self._connection.send(Kind.RELEASE, messages.encode_release([segment]))
            self._settle(identifier, answer)
        elif kind is Kind.RELEASE:
            for number in messages.decode_release(content):
                self._pool.release(self._lent.pop(number))
        elif kind is Kind.ERROR:
            identifier, status = messages.decode_numbered(content)
            self._settle(identifier, from_proto(status_pb2.Status.FromString(status)))
        elif kind is Kind.SEGMENT:
            number, size = messages.decode_segment(content)
            if descriptor is None:
                raise InternalError(f"segment {number} was announced, and its descriptor did not arrive")
            self._theirs.add(number, size, descriptor)
        elif kind is Kind.DROP:
            self._theirs.drop(messages.decode_segment(content)[0])
        elif kind is Kind.HEALTH:
            self._on_health(*messages.decode_health(content))
        elif kind is Kind.PING:
            self._connection.send(Kind.PONG)
        elif kind is Kind.DRAIN:
            self._on_drain()
        else:
            raise InternalError(f"the engine host sent a message of kind {kind.name}")

    def _settle(self, identifier: int, answer: bytes | EnginehouseError) -> None:
        future = self._waiting.pop(identifier, None)
        if future is None or future.done():
            return  # its caller has gone
        if isinstance(answer, EnginehouseError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _announce(self, segment: Segment) -> None:
        content = messages.encode_segment(segment.id, segment.size)
        self._connection.send(Kind.SEGMENT, content, segment.descriptor)

    def _drop(self, segment: Segment) -> None:
        self._connection.send(Kind.DROP, messages.encode_segment(segment.id))


def _traced(metadata: Metadata) -> Sequence[Item]:
    return [(key, value) for key, value in metadata() or () if key in TRACE_KEYS]


def _lost() -> UnavailableError:
    return UnavailableError("the engine host of this server has ended: try again", retry_after_seconds=1.0)
