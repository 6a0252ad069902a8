"""Metrics over HTTP, on a port of their own and in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from enginehouse.errors import UnavailableError

_log = structlog.get_logger("metrics")


class MetricsServer:
    """Answers GET /metrics from the time it is made until `close`.

    Raises:
        UnavailableError: the port is in use or the address is not this machine's.
    """

    def __init__(self, collectors: Sequence[Collector], host: str, port: int) -> None:
        registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            registry.register(collector)
        host = host.strip("[]")
        try:
            self._server: Any = start_http_server(port, addr=host, registry=registry)[0]
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics on {host}:{port}: stop what holds the port, or set ENGINEHOUSE_METRICS_PORT to "
                f"another (0 for a free one) or to off. [{error}]"
            ) from error
        self.port = int(self._server.server_port)
        _log.info("listening", address=f"http://{host}:{self.port}/metrics")

    async def close(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
