"""What front and engine host say to each other, and how they lend each other memory. Both ends are here."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from enginehouse_inference.fronts import messages, servers
from enginehouse_inference.fronts.connection import Connection
from enginehouse_inference.fronts.messages import Call, Kind
from enginehouse_inference.fronts.port import reserve
from enginehouse_inference.fronts.remote import RemoteHost
from enginehouse_inference.fronts.servers import FrontServers
from enginehouse_inference.fronts.session import FrontSession
from enginehouse_inference.service.local import Divided
from enginehouse_inference.settings import InferenceSettings
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from enginehouse.errors import NotFoundError, ResourceExhaustedError, UnavailableError

numbers = st.integers(0, 2**32 - 1)
calls = st.builds(
    Call,
    identifier=st.integers(0, 2**64 - 1),
    method=st.text(max_size=30),
    body=st.binary(max_size=200),
    deadline_ns=st.none() | st.integers(0, 2**62),
    strict=st.booleans(),
    metadata=st.lists(st.tuples(st.text(), st.text()), max_size=3),
    segment=numbers,
    pieces=st.lists(st.tuples(numbers, numbers), max_size=4),
)


@given(calls)
def test_calls_arrive_as_they_were_sent(call: Call) -> None:
    decoded = messages.decode_call(memoryview(messages.encode_call(call)))
    assert decoded._replace(metadata=list(decoded.metadata), pieces=list(decoded.pieces)) == call


@given(st.lists(numbers, max_size=20), st.booleans(), st.lists(st.text(), max_size=3))
def test_the_other_messages_arrive_too(segments: list[int], ready: bool, services: list[str]) -> None:
    assert list(messages.decode_release(memoryview(messages.encode_release(segments)))) == segments
    assert messages.decode_health(memoryview(messages.encode_health(ready, services))) == (ready, services)
    assert messages.decode_place(memoryview(messages.encode_place(1 << 60, 7, 1 << 40))) == (1 << 60, 7, 1 << 40)


async def test_messages_and_descriptors_keep_their_order_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    dice, received = random.Random(0), list[tuple[Kind, bytes, bytes]]()

    def receive(kind: Kind, content: memoryview, descriptor: int | None) -> None:
        data = b""
        if descriptor is not None:
            data = os.pread(descriptor, 100, 0)
            os.close(descriptor)
        received.append((kind, bytes(content), data))

    sender, receiver = Connection(ours), Connection(theirs)
    receiver.start(receive)
    sent = []
    for number in range(400):
        content = dice.randbytes(dice.choice((0, 1, 100, 5_000, 200_000 if number % 50 == 0 else 9)))
        if dice.random() < 0.2:
            file = os.memfd_create("test")
            os.write(file, str(number).encode())
            sender.send(Kind.SEGMENT, content, file)
            os.close(file)
            sent.append((Kind.SEGMENT, content, str(number).encode()))
        else:
            sender.send(Kind.ANSWER, content)
            sent.append((Kind.ANSWER, content, b""))
        if dice.random() < 0.1:
            await asyncio.sleep(0)
    while len(received) < len(sent):
        await asyncio.sleep(0.001)
    assert received == sent
    sender.close()
    await asyncio.wait_for(receiver.lost.wait(), 5)
    sender.send(Kind.ANSWER, b"into the void")


@pytest.mark.parametrize("nonsense", [b"\x00\x00\x00\x00\xff", b"\x01\x00\x00\x00\x17x", b"\x03\x00\x00\x00\x01abc"])
async def test_nonsense_ends_the_connection(nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(theirs)
    connection.start(lambda kind, content, descriptor: messages.decode_call(content) and None)
    ours.send(nonsense)
    await asyncio.wait_for(connection.lost.wait(), 5)
    ours.close()


class Host:
    """An engine host whose answers a test chooses."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], Awaitable[bytes]] = self.echo
        self.seen: list[tuple[Any, ...]] = []

    async def echo(self, message: bytes | Divided) -> bytes:
        if isinstance(message, bytes):
            return message
        return b"".join(bytes(part.view()) for part in message.raw)

    async def infer(self, message: Any, deadline_ns: int | None, metadata: Any) -> bytes:
        self.seen.append((deadline_ns, list(metadata())))
        return await self.answer(message)

    async def infer_in_stream(self, message: Any, strict: bool, metadata: Any) -> bytes:
        self.seen.append((strict, list(metadata())))
        return await self.answer(message)

    async def manage(self, method: str, request: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=(method, request.name) == ("ModelReady", "m"))


@asynccontextmanager
async def both() -> Any:
    ours, theirs = socket.socketpair()
    host, health = Host(), []
    front, back = Connection(ours), Connection(theirs)
    session = FrontSession(back, host, lambda: None, 1 << 20)  # type: ignore[arg-type]
    remote = RemoteHost(front, lambda ready, services: health.append((ready, services)), lambda: None, 1 << 20)
    yield remote, session, host, health
    front.close()
    await session.close()


def nothing() -> Iterator[Any]:
    return iter(())


def request(size: int) -> bytes:
    message = service_pb2.ModelInferRequest(model_name="m")
    message.raw_input_contents.extend([os.urandom(size), b"", os.urandom(size // 2)])
    return bytes(message.SerializeToString())


async def settled(remote: Any) -> None:
    """Until the engine host has given back what it was lent."""
    for _ in range(5_000):
        if not remote._pool.used and not remote._lent:
            return
        gc.collect()
        await asyncio.sleep(0.001)
    raise AssertionError("memory that was lent did not come back")


async def test_small_and_large_requests_and_answers() -> None:
    async with both() as (remote, session, host, health):
        for size in (10, 5_000, 20_000, 300_000):
            data = request(size)
            raw = b"".join(service_pb2.ModelInferRequest.FromString(data).raw_input_contents)
            got = await remote.infer(data, 5, lambda: [("traceparent", "t"), ("other", "o")])
            assert got == (data if len(data) < 16 << 10 else raw)
            assert host.seen[-1] == (5, [("traceparent", "t")])
            await remote.infer_in_stream(data, True, nothing)
            assert host.seen[-1] == (True, [])
        assert (await remote.manage("ModelReady", service_pb2.ModelReadyRequest(name="m"))).ready
        session.set_health(True, ("m",))
        await remote.manage("ModelReady", service_pb2.ModelReadyRequest(name="m"))
        assert health == [(True, ["m"])]
        await settled(remote)
        assert not session._pool.used and not session._tasks


async def test_bytes_that_are_no_message_reach_the_engine_host_as_they_are() -> None:
    async with both() as (remote, _, _, _):
        nonsense = b"\x3a" + bytes([255]) * 40_000
        assert await remote.infer(nonsense, None, nothing) == nonsense


async def test_errors_arrive_whole() -> None:
    async with both() as (remote, _, host, _):

        async def refuse(message: Any) -> bytes:
            raise NotFoundError("none", details={"model": "m"}, retry_after_seconds=1.5)

        host.answer = refuse
        for size in (10, 40_000):
            with pytest.raises(NotFoundError) as caught:
                await remote.infer(request(size), None, nothing)
            error = caught.value
            assert (error.message, error.details, error.retry_after_seconds) == ("none", {"model": "m"}, 1.5)
            del caught, error

        async def fail(message: Any) -> bytes:
            raise ZeroDivisionError("oh")

        host.answer = fail
        with pytest.raises(Exception, match="internal error in ModelInfer: ZeroDivisionError: oh"):
            await remote.infer(request(10), None, nothing)
        await settled(remote)


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_caller_that_leaves_cancels_and_its_memory_comes_back(turns: int) -> None:
    async with both() as (remote, session, host, _):
        begun, ended = [], []

        async def wait(message: Any) -> bytes:
            begun.append(1)
            try:
                await asyncio.Event().wait()
                return b""
            finally:
                ended.append(1)

        host.answer = wait
        tasks = [asyncio.create_task(remote.infer(request(size), None, nothing)) for size in (10, 50_000)]
        for _ in range(turns):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        host.answer = host.echo
        await remote.infer(request(10), None, nothing)
        await settled(remote)
        assert begun == ended and not session._tasks


async def test_a_front_that_dies_takes_its_calls_along() -> None:
    async with both() as (remote, session, host, _):
        ended = asyncio.Event()

        async def wait(message: Any) -> bytes:
            try:
                await asyncio.Event().wait()
                return b""
            finally:
                ended.set()

        host.answer = wait
        task = asyncio.create_task(remote.infer(request(50_000), None, nothing))
        await asyncio.sleep(0.01)
        await session.close()
        assert ended.is_set() and not session._segments
        remote.lose()
        with pytest.raises(UnavailableError):
            await task


async def test_an_answer_without_memory_goes_through_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async with both() as (remote, session, _, _):

        def none(size: int) -> Any:
            raise ResourceExhaustedError("no memory")

        monkeypatch.setattr(session._pool, "acquire", none)
        data = request(100_000)
        raw = b"".join(service_pb2.ModelInferRequest.FromString(data).raw_input_contents)
        assert await remote.infer(data, None, nothing) == raw


def test_a_port_is_kept_and_one_in_use_is_told() -> None:
    held, port = reserve("127.0.0.1", 0)
    with held, socket.socket() as shares:
        shares.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shares.bind(("127.0.0.1", port))
        shares.listen()
        with pytest.raises(UnavailableError, match="port is in use"):
            reserve("127.0.0.1", port)
    with pytest.raises(UnavailableError, match="not this machine"):
        reserve("192.0.2.1", 0)


async def test_a_front_that_cannot_be_started_again_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fronts = FrontServers(InferenceSettings(), 1, Host())  # type: ignore[arg-type]
    attempts: list[int] = []

    async def run(number: int) -> int:
        attempts.append(number)
        if len(attempts) == 1:
            fronts._listens(number)
            return 1
        if len(attempts) == 4:
            fronts._stopping = True
        raise OSError("too many open files")

    monkeypatch.setattr(fronts, "_run", run)
    monkeypatch.setattr(servers, "_BACKOFF_FIRST", 0.001)
    fronts._listening[0] = asyncio.get_running_loop().create_future()
    await asyncio.wait_for(fronts._keep(0), 10)
    assert (len(attempts), fronts.deaths) == (4, 3)


async def test_the_first_front_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fronts = FrontServers(InferenceSettings(port=0), 2, Host())  # type: ignore[arg-type]

    async def run(number: int) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(fronts, "_run", run)
    with pytest.raises(UnavailableError, match="too many open files"):
        await fronts.start()
