"""The bootstrap, tried with a real server and client on loopback."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates_for_tests import make_ca, sign
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from enginehouse.errors import (
    EnginehouseError,
    InternalError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.rpc.authorization import Principal, current_principal
from enginehouse.rpc.server import RpcServer, Service, run_until_signalled
from enginehouse.rpc.settings import ServerSettings
from enginehouse.rpc.status import from_rpc_error
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc


class Blobs(blobs_pb2_grpc.BlobsServicer):
    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.entered = 0
        self.closed = asyncio.Event()
        self.principal: Principal | None = None

    async def FindBlob(self, request: Any, context: Any) -> blobs_pb2.FindBlobResponse:
        self.entered += 1
        self.principal = current_principal()
        if request.digest == "missing":
            raise NotFoundError("no blob missing", details={"digest": "missing"}, retry_after_seconds=2.0)
        if request.digest == "bug":
            raise KeyError("bug")
        if request.digest == "wait":
            await self.release.wait()
        return blobs_pb2.FindBlobResponse(complete=True)

    async def WriteBlob(self, request_iterator: Any, context: Any) -> blobs_pb2.WriteBlobResponse:
        count = 0
        async for _ in request_iterator:
            count += 1
        return blobs_pb2.WriteBlobResponse(committed_bytes=count)

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blobs_pb2.ReadBlobResponse]:
        try:
            while request.digest == "endless":
                yield blobs_pb2.ReadBlobResponse(data=b"more")
        finally:
            self.closed.set()
        yield blobs_pb2.ReadBlobResponse(data=b"first")
        raise NotFoundError("gone after the first chunk")


class OnlyMine:
    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        if resource != "projects/mine":
            raise PermissionDeniedError(f"{principal.name} may not {method} on {resource}")


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[tuple[RpcServer, Blobs, str]]:
    authorizer = changes.pop("authorizer", None)
    servicer = Blobs()
    service = Service(
        "enginehouse.v1.Blobs", lambda server: blobs_pb2_grpc.add_BlobsServicer_to_server(servicer, server)
    )
    server = RpcServer(ServerSettings(**changes), [service], authorizer=authorizer)
    port = await server.start()
    try:
        yield server, servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def failure(call: Any) -> EnginehouseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def find(channel: Any, digest: str = "x", parent: str = "projects/mine") -> Any:
    return blobs_pb2_grpc.BlobsStub(channel).FindBlob(blobs_pb2.FindBlobRequest(parent=parent, digest=digest))


async def test_an_error_arrives_as_its_class_with_details() -> None:
    async with serving() as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        error = await failure(find(channel, "missing"))
        assert isinstance(error, NotFoundError)
        assert error.details == {"digest": "missing"}
        assert error.retry_after_seconds == 2.0


async def test_a_bug_is_internal_and_the_server_lives_on() -> None:
    async with serving() as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        assert isinstance(await failure(find(channel, "bug")), InternalError)
        assert (await find(channel)).complete


async def test_a_stream_that_fails_delivers_what_it_had() -> None:
    async with serving() as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        call = blobs_pb2_grpc.BlobsStub(channel).ReadBlob(blobs_pb2.ReadBlobRequest())
        assert (await call.read()).data == b"first"
        assert isinstance(await failure(call.read()), NotFoundError)


async def test_calls_over_the_limit_are_refused_but_probes_are_not() -> None:
    async with (
        serving(max_concurrent_rpcs=2) as (server, servicer, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        waiting = [find(channel, "wait") for _ in range(2)]
        while servicer.entered < 2:
            await asyncio.sleep(0.01)
        error = await failure(find(channel))
        assert isinstance(error, ResourceExhaustedError)
        assert error.retry_after_seconds is not None
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        servicer.release.set()
        await asyncio.gather(*waiting)
        assert (await find(channel)).complete
        assert server.chain.running == 0


async def test_authorize_sees_every_call_request_streams_too() -> None:
    async with serving(authorizer=OnlyMine()) as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        assert (await find(channel, parent="projects/mine")).complete
        assert isinstance(await failure(find(channel, parent="projects/other")), PermissionDeniedError)
        stub = blobs_pb2_grpc.BlobsStub(channel)

        def chunks(parent: str) -> Any:
            return iter([blobs_pb2.WriteBlobRequest(parent=parent), blobs_pb2.WriteBlobRequest(data=b"x")])

        assert (await stub.WriteBlob(chunks("projects/mine"))).committed_bytes == 2
        assert isinstance(await failure(stub.WriteBlob(chunks("projects/other"))), PermissionDeniedError)


async def test_health_follows_readiness() -> None:
    async with serving() as (server, _, address), grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(service: str = "") -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

        assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_ready(True)
        assert await status() == await status("enginehouse.v1.Blobs") == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services() -> None:
    async with serving() as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {s.name for s in (await call.read()).list_services_response.service}
        assert {"enginehouse.v1.Blobs", "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}.*ENGINEHOUSE_PORT"):
            async with serving(port=port):
                pass


async def test_stop_lets_a_call_in_flight_finish() -> None:
    async with serving() as (server, servicer, address), grpc.aio.insecure_channel(address) as channel:
        call = find(channel, "wait")
        while not servicer.entered:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        servicer.release.set()
        assert (await call).complete
        await stopping


async def test_no_server_names_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await find(channel)
            error = from_rpc_error(caught.value, target=address)
            assert isinstance(error, UnavailableError)
            assert address in error.message and "enginehouse up" in error.message


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A CA, and a server and a client certificate that it signed."""
    make_ca(tmp_path)
    for name in ("server", "client"):
        sign(tmp_path, name, f"/CN={name}-1")
    return tmp_path


async def test_mutual_tls_names_the_principal_and_refuses_strangers(pki: Path) -> None:
    tls = {"tls_certificate": pki / "server.pem", "tls_key": pki / "server.key", "tls_client_ca": pki / "ca.pem"}
    ca = (pki / "ca.pem").read_bytes()
    async with serving(**tls) as (_, servicer, address):
        with_certificate = grpc.ssl_channel_credentials(
            ca, (pki / "client.key").read_bytes(), (pki / "client.pem").read_bytes()
        )
        async with grpc.aio.secure_channel(address, with_certificate) as channel:
            assert (await find(channel)).complete
            assert servicer.principal == Principal("client-1", authenticated=True)
        async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca)) as channel:
            assert isinstance(await failure(find(channel)), UnavailableError)


def test_half_of_tls_is_refused(pki: Path) -> None:
    with pytest.raises(ValueError, match="ENGINEHOUSE_TLS_KEY"):
        ServerSettings(tls_certificate=pki / "server.pem")


async def test_a_stream_may_not_move_on_to_what_is_not_allowed() -> None:
    async with serving(authorizer=OnlyMine()) as (_, _, address), grpc.aio.insecure_channel(address) as channel:
        stub = blobs_pb2_grpc.BlobsStub(channel)
        names = ("projects/mine", "", "projects/other")
        call = stub.WriteBlob(iter([blobs_pb2.WriteBlobRequest(parent=name) for name in names]))
        assert isinstance(await failure(call), PermissionDeniedError)


async def test_a_service_says_what_its_requests_name() -> None:
    servicer = Blobs()
    service = Service(
        "enginehouse.v1.Blobs",
        lambda server: blobs_pb2_grpc.add_BlobsServicer_to_server(servicer, server),
        resource=lambda method, request: f"projects/{request.digest}" if method.endswith("/FindBlob") else "",
    )
    server = RpcServer(ServerSettings(), [service], authorizer=OnlyMine())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert (await find(channel, digest="mine", parent="")).complete
        assert isinstance(await failure(find(channel, digest="other")), PermissionDeniedError)
    await server.stop()


async def test_a_stream_is_closed_when_its_caller_goes() -> None:
    gc.disable()  # which would close it some day
    try:
        async with serving() as (server, servicer, address), grpc.aio.insecure_channel(address) as channel:
            call = blobs_pb2_grpc.BlobsStub(channel).ReadBlob(blobs_pb2.ReadBlobRequest(digest="endless"))
            assert (await call.read()).data == b"more"
            call.cancel()
            await asyncio.wait_for(servicer.closed.wait(), 5)
            while server.chain.running:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_call_that_failed_does_not_keep_its_request() -> None:
    class Request:
        """What a weak reference can be made to."""

    seen: list[weakref.ref[Request]] = []

    async def fail(request: Request, context: Any) -> bytes:
        seen.append(weakref.ref(request))
        raise NotFoundError("nothing")

    def add(server: grpc.aio.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(fail, request_deserializer=lambda data: Request())
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Fail": handler}),))

    server = RpcServer(ServerSettings(), [Service("test.Test", add)])
    port = await server.start()
    gc.disable()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert isinstance(await failure(channel.unary_unary("/test.Test/Fail")(b"")), NotFoundError)
            await asyncio.sleep(0.05)
        assert [reference() for reference in seen] == [None]
    finally:
        gc.enable()
        await server.stop()


async def run_with_signal(start: Callable[[], Awaitable[None]], *, after: float = 0.1) -> list[str]:
    """What a service that is told to stop does, in order."""
    done: list[str] = []

    async def starting() -> None:
        try:
            await start()
            done.append("started")
        except asyncio.CancelledError:
            done.append("cancelled")
            raise

    async def drain() -> None:
        done.append("drained")

    asyncio.get_running_loop().call_later(after, os.kill, os.getpid(), signal.SIGTERM)
    server = RpcServer(ServerSettings(), [])
    await asyncio.wait_for(run_until_signalled(server, start=starting, drain=drain, announce=lambda _: None), 5)
    return done


async def test_a_signal_ends_a_start_that_lasts() -> None:
    assert await run_with_signal(lambda: asyncio.sleep(60)) == ["cancelled", "drained"]


async def test_a_signal_ends_a_service_that_has_started() -> None:
    assert await run_with_signal(lambda: asyncio.sleep(0)) == ["started", "drained"]


async def test_a_start_that_fails_is_drained_and_told() -> None:
    async def fail() -> None:
        raise NotFoundError("no disk")

    with pytest.raises(NotFoundError, match="no disk"):
        await run_with_signal(fail, after=0.01)
