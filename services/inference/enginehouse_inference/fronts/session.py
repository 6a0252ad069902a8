"""One front process, as the engine host serves it: its calls, and the memory that both lend each other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from google.protobuf import message_factory
from tritonclient.grpc import service_pb2

from enginehouse.errors import EnginehouseError, InternalError, ResourceExhaustedError
from enginehouse.rpc.status import to_proto
from enginehouse.workers.segments import Segment, SegmentPool
from enginehouse.workers.shared import SharedPart, SharedSegment
from enginehouse_inference.fronts import messages
from enginehouse_inference.fronts.connection import Connection
from enginehouse_inference.fronts.messages import Call, Kind
from enginehouse_inference.service.local import Divided, LocalHost

_log = structlog.get_logger("fronts")

# Larger answers go through shared memory.
INLINE_BYTES = 64 << 10
_REQUESTS = {
    method.name: message_factory.GetMessageClass(method.input_type)
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
}


class _Loan:
    """A front's segment while a request uses it. Given back when nobody holds this any more."""

    __slots__ = ("_give_back", "_number")

    def __init__(self, number: int, give_back: Callable[[int], None]) -> None:
        self._number, self._give_back = number, give_back

    def __del__(self) -> None:
        self._give_back(self._number)


class FrontSession:
    """Serves one front until it is gone; `close` then cancels its calls.

    Args:
        on_listening: told once the front listens.
        keep_bytes: of free shared memory to keep for answers.
    """

    def __init__(
        self, connection: Connection, host: LocalHost, on_listening: Callable[[], None], keep_bytes: int
    ) -> None:
        self._connection = connection
        self._host = host
        self._on_listening = on_listening
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._segments: dict[int, SharedSegment] = {}
        self._pool = SegmentPool(self._announce, self._drop, keep_bytes)
        self._answers: dict[int, Segment] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._returned: list[int] = []
        # When it last said that it lives, since it listens, in seconds of the monotonic clock; None before.
        self.heard: float | None = None
        connection.start(self._receive)

    def set_health(self, ready: bool, services: tuple[str, ...]) -> None:
        """Have the front say how services are."""
        self._connection.send(Kind.HEALTH, messages.encode_health(ready, services))

    def ping(self) -> None:
        """Have the front say that it lives."""
        self._connection.send(Kind.PING)

    def drain(self) -> None:
        """Have the front take no more calls, finish those it has, and end."""
        self._connection.send(Kind.DRAIN)

    async def close(self) -> None:
        """The front is gone: nobody waits for its calls."""
        self._connection.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._segments.clear()
        self._pool.close()

    def _receive(self, kind: Kind, content: memoryview, descriptor: int | None) -> None:
        if kind is Kind.CALL:
            call = messages.decode_call(content)
            self._tasks[call.identifier] = asyncio.create_task(self._serve(call, self._message(call)))
        elif kind is Kind.CANCEL:
            identifier, _ = messages.decode_numbered(content)
            # One that has not begun never will, and does not say that it is done.
            if (task := self._tasks.pop(identifier, None)) is not None:
                task.cancel()
        elif kind is Kind.RELEASE:
            for number in messages.decode_release(content):
                self._pool.release(self._answers.pop(number))
        elif kind is Kind.SEGMENT:
            number, size = messages.decode_segment(content)
            if descriptor is None:
                raise InternalError(f"segment {number} was announced, and its descriptor did not arrive")
            self._segments[number] = SharedSegment(size, descriptor)
        elif kind is Kind.DROP:
            self._segments.pop(messages.decode_segment(content)[0], None)
        elif kind is Kind.PONG:
            self.heard = time.monotonic()
        elif kind is Kind.LISTENING:
            self.heard = time.monotonic()
            self._on_listening()
        else:
            raise InternalError(f"a front sent a message of kind {kind.name}")

    async def _serve(self, call: Call, message: bytes | Divided) -> None:
        try:
            answer = await self._answer(call, message)
        except asyncio.CancelledError:
            return  # its caller has gone
        except Exception as error:
            self._send_error(call, error)
        else:
            self._send_answer(call, answer)
        finally:
            self._tasks.pop(call.identifier, None)

    async def _answer(self, call: Call, message: bytes | Divided) -> bytes:
        if call.method == "ModelInfer":
            return await self._host.infer(message, call.deadline_ns, lambda: call.metadata)
        if call.method == "ModelStreamInfer":
            return await self._host.infer_in_stream(message, call.strict, lambda: call.metadata)
        request = _REQUESTS[call.method].FromString(call.body)
        response: Any = await self._host.manage(call.method, request)
        return bytes(response.SerializeToString())

    def _message(self, call: Call) -> bytes | Divided:
        if not call.pieces:
            return call.body
        segment, loan = self._segments[call.segment], _Loan(call.segment, self._give_back)
        return Divided(call.body, tuple(SharedPart(segment, offset, size, loan) for offset, size in call.pieces))

    def _send_answer(self, call: Call, answer: bytes) -> None:
        if len(answer) > INLINE_BYTES:
            try:
                segment = self._pool.acquire(len(answer))
            except ResourceExhaustedError:
                pass  # the socket takes it too
            else:
                segment.view[: len(answer)] = answer
                self._answers[segment.id] = segment
                place = messages.encode_place(call.identifier, segment.id, len(answer))
                self._connection.send(Kind.ANSWER_IN_SEGMENT, place)
                return
        self._connection.send(Kind.ANSWER, messages.encode_numbered(call.identifier, answer))

    def _send_error(self, call: Call, error: Exception) -> None:
        if not isinstance(error, EnginehouseError):
            _log.error("call failed", method=call.method, exc_info=error)
            error = InternalError(
                f"internal error in {call.method}: {type(error).__name__}: {error} (the server's log has more)"
            )
        status = to_proto(error).SerializeToString()
        self._connection.send(Kind.ERROR, messages.encode_numbered(call.identifier, status))

    def _give_back(self, number: int) -> None:
        if threading.get_ident() != self._thread:  # the garbage collector came by in another thread
            self._loop.call_soon_threadsafe(self._give_back, number)
            return
        self._returned.append(number)
        if len(self._returned) == 1 and not self._loop.is_closed():
            self._loop.call_soon(self._send_returned)

    def _send_returned(self) -> None:
        self._connection.send(Kind.RELEASE, messages.encode_release(self._returned))
        self._returned = []

    def _announce(self, segment: Segment) -> None:
        self._connection.send(Kind.SEGMENT, messages.encode_segment(segment.id, segment.size), segment.descriptor)

    def _drop(self, segment: Segment) -> None:
        self._connection.send(Kind.DROP, messages.encode_segment(segment.id))
