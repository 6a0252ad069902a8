"""The bootstrap of every gRPC server: bind, serve, tell health, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from enginehouse.errors import UnavailableError
from enginehouse.rpc.authorization import AllowAll, Authorizer, ResourceOf, resource_of
from enginehouse.rpc.certificates import CertificateFiles, RotatingCertificates
from enginehouse.rpc.interceptor import CallChain
from enginehouse.rpc.security import Security
from enginehouse.rpc.settings import ServerSettings

_log = structlog.get_logger("server")

HEALTH = "grpc.health.v1.Health"


@dataclass(frozen=True)
class Service:
    """A gRPC service to register.

    Args:
        name: its full name.
        add: adds its servicer to a server.
        resource: what its requests name, for authorization.
    """

    name: str
    add: Callable[[grpc.aio.Server], Any]
    resource: ResourceOf = resource_of


class RpcServer:
    """A gRPC server with our interceptor chain, health and reflection.

    Who may call is what the settings say, or the `authorizer` where one is given.

    `start()` binds and serves NOT_SERVING; `set_ready(True)` when the service can work; `stop()` drains.
    """

    def __init__(
        self,
        settings: ServerSettings,
        services: Sequence[Service],
        *,
        authorizer: Authorizer | None = None,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        self._settings = settings
        self._services = tuple(services)
        security = Security.of(settings) if authorizer is None else Security(authorizer)
        self.chain = CallChain(
            authorizer=security.authorizer,
            admission=security.admission,
            certificates=settings.tls_client_ca is not None,
            max_concurrent_rpcs=settings.max_concurrent_rpcs,
            resources={service.name: service.resource for service in self._services},
        )
        self.health = health_aio.HealthServicer()
        self.port = 0
        self.health_port = 0
        self._open = isinstance(security.authorizer, AllowAll) and settings.tls_client_ca is None
        self._server = grpc.aio.server(interceptors=[self.chain], options=[*options, *_options(settings)])
        for service in self._services:
            service.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = [s.name for s in self._services] + [HEALTH, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        self._probed = _health_server(self.health) if settings.health_port is not None else None

    async def start(self) -> int:
        """Bind and serve; returns the port.

        Raises:
            UnavailableError: the port is in use or the address is not this machine's.
            FailedPreconditionError: the certificate or the private key cannot be used.
        """
        host, credentials = self._settings.host, _credentials(self._settings)
        address = f"{host}:{self._settings.port}"
        await self.set_ready(False)
        self.port = _bind(self._server, address, "ENGINEHOUSE_PORT", credentials)
        if self._probed is not None:
            self.health_port = _bind(self._probed, f"{host}:{self._settings.health_port}", "ENGINEHOUSE_HEALTH_PORT")
            await self._probed.start()
        await self._server.start()
        if self._open and not self._settings.is_loopback:
            _log.warning("every caller is allowed on an address that others can reach", address=address)
        _log.info("listening", address=f"{self._settings.host}:{self.port}", tls=credentials is not None)
        return self.port

    async def set_ready(self, ready: bool, *services: str) -> None:
        """Set the health of the named services (of the whole server and all its services when none is named)."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in services or ("", *(s.name for s in self._services)):
            await self.health.set(name, status)

    async def stop(self) -> None:
        """Tell probes that we leave, refuse new calls, let those in flight finish (for the drain time at most)."""
        await self.health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)
        if self._probed is not None:
            await self._probed.stop(None)

    async def wait_for_termination(self) -> None:
        await self._server.wait_for_termination()


class Bound(Protocol):
    """What is bound to a port: an `RpcServer`, or several processes that are used as one."""

    async def start(self) -> int: ...

    async def set_ready(self, ready: bool, *services: str) -> None: ...

    async def stop(self) -> None: ...


async def run_until_signalled(
    server: Bound,
    *,
    start: Callable[[], Awaitable[None]],
    drain: Callable[[], Awaitable[None]],
    stopping: Callable[[], Awaitable[None]] | None = None,
    announce: Callable[[int], None] | None = None,
) -> None:
    """Run a service until SIGTERM or SIGINT: bind, `start()` its parts, be ready; then not ready, `drain()` its parts.

    Args:
        start: brings up what the service needs; the server already answers, NOT_SERVING. Cancelled when the signal
            comes before it is done.
        drain: releases it, however far `start` came, after the last call.
        stopping: called when the signal comes, while calls are still in flight: a service with streams that would
            never end ends them here, or they hold up the stop for the whole drain time.
        announce: told the port once the service is ready.
    """
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    port = await server.start()
    try:
        if await _unless(signalled, start()):
            await server.set_ready(True)
            _log.info("ready", port=port)
            if announce is not None:
                announce(port)
            await signalled.wait()
        _log.info("draining")
    finally:
        if stopping is not None:
            await stopping()
        await server.stop()
        await drain()
        _log.info("stopped")


async def _unless(signalled: asyncio.Event, work: Awaitable[None]) -> bool:
    """Do the work, but give it up when the signal comes before it is done; returns whether it is done."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(signalled.wait())
    try:
        both: set[asyncio.Future[Any]] = {working, waiting}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def _options(settings: ServerSettings) -> list[tuple[str, int | str]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return RotatingCertificates(files).credentials()


def _bind(
    server: grpc.aio.Server, address: str, setting: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Take an address; returns the port.

    Raises:
        UnavailableError: it cannot be had.
    """
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address}: the port is in use or the address is not this machine's. "
            f"Stop what holds it, or set {setting} to another port. [{error}]"
        ) from error


def _health_server(health: Any) -> grpc.aio.Server:
    """A server of health checks alone, which needs no chain: its calls name nothing and anybody may make them."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4096)])
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server
