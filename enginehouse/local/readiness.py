"""Wait until a service that was started says its port and answers its health check."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path

from enginehouse.client.connection import Endpoint
from enginehouse.client.health import is_serving
from enginehouse.errors import FailedPreconditionError
from enginehouse.local.processes import is_alive, tail
from enginehouse.local.state import ServiceState


async def is_healthy(address: str, timeout: float) -> bool:
    """Whether the server at an address says that it is serving."""
    endpoint = Endpoint(address, timeout=timeout, tls=None)
    try:
        return await is_serving(endpoint, timeout)
    finally:
        await endpoint.close()


async def wait_ready(service: ServiceState, host: str, announcement: Path, timeout: float) -> ServiceState:
    """The service with the port that it announced, once it is healthy at that host.

    Raises:
        FailedPreconditionError: its process ended or it was not ready in time; the message has the end of its log.
    """
    deadline = time.monotonic() + timeout
    while True:
        port = announced_port(announcement)
        if port and await is_healthy(f"{host}:{port}", 2.0):
            return dataclasses.replace(service, port=port)
        if not is_alive(service.pid, service.start_time):
            raise _failure(service, "ended before it was ready")
        if time.monotonic() > deadline:
            raise _failure(service, f"was not ready after {timeout:g} s")
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
