"""Wait until a service that was started says its port and answers its health check."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from enginehouse.client.connection import Endpoint
from enginehouse.client.health import is_serving
from enginehouse.errors import FailedPreconditionError
from enginehouse.local.processes import is_alive, tail
from enginehouse.local.state import ServiceState
from enginehouse.rpc.channels import TLS, credentials_from


def tls_of(variables: Mapping[str, str]) -> TLS | None:
    """How to ask services with these variables: over TLS if they have a certificate.

    ENGINEHOUSE_CLIENT_CA and its like say what to trust; without them it is that certificate.

    Raises:
        InvalidArgumentError: the client's variables do not go together.
    """
    certificate = variables.get("ENGINEHOUSE_TLS_CERTIFICATE")
    return (credentials_from(variables).tls or TLS(ca=certificate)) if certificate else None


async def is_healthy(address: str, timeout: float, tls: TLS | None = None) -> bool:
    """Whether the server at an address says that it is serving."""
    endpoint = Endpoint(address, timeout=timeout, tls=tls)
    try:
        return await is_serving(endpoint, timeout)
    finally:
        await endpoint.close()


async def wait_ready(
    service: ServiceState, host: str, announcement: Path, timeout: float, tls: TLS | None = None
) -> ServiceState:
    """The service with the port that it announced, once it is healthy at that host.

    Raises:
        FailedPreconditionError: its process ended or it was not ready in time; the message has the end of its log.
    """
    deadline = time.monotonic() + timeout
    while True:
        port = announced_port(announcement)
        if port and await is_healthy(f"{host}:{port}", 2.0, tls):
            return dataclasses.replace(service, port=port)
        if not is_alive(service.pid, service.start_time):
            raise _failure(service, "ended before it was ready")
        if time.monotonic() > deadline:
            secured = " (asked over TLS: ENGINEHOUSE_CLIENT_CA and its like must fit its certificate)" if tls else ""
            raise _failure(service, f"was not ready after {timeout:g} s{secured}")
        await asyncio.sleep(0.05)


def announced_port(announcement: Path) -> int:
    """The port in a service's announcement; 0 while there is none."""
    try:
        return int(json.loads(announcement.read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _failure(service: ServiceState, what: str) -> FailedPreconditionError:
    log = Path(service.log)
    return FailedPreconditionError(
        f"{service.name} {what}. The end of {log}:\n{tail(log) or '(empty)'}", details={"service": service.name}
    )
