"""Agents by watching the EndpointSlices of their Service."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import structlog

from enginehouse.errors import EnginehouseError, FailedPreconditionError, OutOfRangeError
from enginehouse_telemetry.aggregator.discovery import AgentAddress
from enginehouse_telemetry.aggregator.endpoint_slices import AgentService, Slices

FIRST_WAIT, LAST_WAIT = 0.5, 30.0

_log = structlog.get_logger("discovery")


class Event(Protocol):
    """A watch's event."""

    @property
    def type(self) -> str: ...

    @property
    def object(self) -> dict[str, Any]: ...

    @property
    def version(self) -> str: ...


class Api(Protocol):
    """The API server; `enginehouse.kubernetes.api.KubernetesApi` is one."""

    async def get(self, path: str, **query: str) -> dict[str, Any]: ...

    def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Any]: ...

    async def close(self) -> None: ...


class ServiceAgents:
    """The agents behind a Service. What was known stands while the API server is away.

    Args:
        connect: makes the connection, when it is first needed and after every failure (credentials may have changed).
    """

    def __init__(
        self, service: AgentService, connect: Callable[[], Awaitable[Api]], first_wait: float = FIRST_WAIT
    ) -> None:
        self._service, self._connect, self._first_wait = service, connect, first_wait

    async def watch(self) -> AsyncIterator[frozenset[AgentAddress]]:
        before: frozenset[AgentAddress] | None = None
        wait = self._first_wait
        while True:
            try:
                api = await self._connect()
                try:
                    async for agents in self._follow(api):
                        wait = self._first_wait
                        if agents != before:
                            before = agents
                            yield agents
                finally:
                    await api.close()
            except EnginehouseError as error:
                _log.warning(
                    "the agents' EndpointSlices cannot be watched",
                    service=f"{self._service.namespace}/{self._service.name}",
                    reason=error.reason,
                    error=error.message,
                )
                pause = max(wait, error.retry_after_seconds or 0.0)
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                wait = min(wait * 2, LAST_WAIT)

    async def _follow(self, api: Api) -> AsyncIterator[frozenset[AgentAddress]]:
        """List, then watch; list again when the version that we have is too old to go on from."""
        slices = Slices()
        while True:
            listed = await api.get(self._service.path, labelSelector=self._service.selector)
            slices.replace(listed.get("items") or ())
            version = str(listed["metadata"]["resourceVersion"])
            yield slices.agents(self._service.port)
            try:
                while True:  # the server ends a watch every few minutes: go on from where it was
                    began = version
                    async for event in api.watch(self._service.path, version, labelSelector=self._service.selector):
                        version = event.version
                        if event.type != "BOOKMARK":
                            slices.apply(event.type, event.object)
                            yield slices.agents(self._service.port)
                    if version == began:
                        await asyncio.sleep(self._first_wait)  # a watch that ends at once must not become a storm
            except OutOfRangeError:
                _log.info("the watch fell too far behind: listing again", service=self._service.name)


def kubernetes_api() -> Callable[[], Awaitable[Api]]:
    """What connects to the cluster's API server.

    Raises:
        FailedPreconditionError: the `kubernetes` client is not installed.
    """
    try:
        from enginehouse.kubernetes.api import KubernetesApi
    except ImportError as error:
        raise FailedPreconditionError(
            "ENGINEHOUSE_AGENTS_SERVICE needs the Kubernetes client: pip install 'enginehouse-telemetry[aggregator]', "
            f"or name the agents in ENGINEHOUSE_AGENTS [{error}]"
        ) from error
    return KubernetesApi.connect
