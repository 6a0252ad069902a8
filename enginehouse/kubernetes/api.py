"""Calls of a Kubernetes API server: objects as plain JSON, lists, watches and logs, errors as ours.

The `kubernetes` client finds the server, its certificates and the credentials, and sends; its models of 1,900 kinds of
objects are not used, because a field that they do not expect (an EndpointSlice's `endpoints: null`) fails them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from enginehouse.errors import (
    AbortedError,
    AlreadyExistsError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from enginehouse.kubernetes.api_server import SERVICE_ACCOUNT

Object = dict[str, Any]

NAMESPACE_FILE = SERVICE_ACCOUNT / "namespace"
_CALL_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
# Watches and logs keep theirs: a call must not wait for one of them to end.
_CONNECTIONS = 1000
# A watch that brings nothing for longer than the server was asked to keep it open is dead.
WATCH_SECONDS = 240
_WATCH_SLACK_SECONDS = 30.0


@dataclass(frozen=True)
class WatchEvent:
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object

    @property
    def version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


class KubernetesApi:
    """One API server. Make it with `connect`, inside the event loop that will use it; close it.

    Every method raises UnavailableError when the server does not answer, UnauthenticatedError and
    PermissionDeniedError when it refuses, and for its other errors the class nearest to what it says.
    """

    def __init__(self, configuration: client.Configuration) -> None:
        self._client = client.ApiClient(configuration)
        self.server = str(configuration.host)

    @classmethod
    async def connect(cls) -> KubernetesApi:
        """The cluster that KUBECONFIG names, or the one that this process runs in, or `~/.kube/config`'s.

        Raises:
            FailedPreconditionError: there is none.
        """
        configuration = client.Configuration()
        configuration.connection_pool_maxsize = _CONNECTIONS
        try:
            if "KUBECONFIG" in os.environ or "KUBERNETES_SERVICE_HOST" not in os.environ:
                # Named here: the client reads the variable once, when it is imported.
                await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
            else:
                config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError, ValueError, TypeError) as error:
            raise FailedPreconditionError(
                f"no Kubernetes cluster is configured: expected to run in a pod with a service account's token, or "
                f"KUBECONFIG with the path of a kubeconfig ({error})"
            ) from error
        return cls(configuration)

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> KubernetesApi:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def get(self, path: str, **query: str) -> Object:
        """An object or a list, such as `/api/v1/nodes`."""
        return await self._call("GET", path, query)

    async def post(self, path: str, body: Object, **query: str) -> Object:
        return await self._call("POST", path, query, body)

    async def delete(self, path: str, propagation: str = "Background") -> Object:
        """Delete an object, and with it what it owns."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        return await self._call("DELETE", path, {}, body)

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[WatchEvent]:
        """The changes after a version, until the server ends the stream, as it does every few minutes.

        Raises:
            OutOfRangeError: the version is too old: list again.
        """
        asked = {**query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        asked.setdefault("timeoutSeconds", str(WATCH_SECONDS))
        quiet = float(asked["timeoutSeconds"]) + _WATCH_SLACK_SECONDS
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=quiet)
        async with self._open("GET", path, asked, None, timeout) as response:
            rest = b""
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _watch_event(json.loads(line))

    async def log(self, path: str, **query: str) -> AsyncIterator[bytes]:
        """A container's log as it comes; `path` is a pod's `.../log`. With follow="true" it ends with the container."""
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=None)
        async with self._open("GET", path, query, None, timeout) as response:
            async for data in response.content.iter_any():
                yield data

    async def _call(self, method: str, path: str, query: Mapping[str, str], body: Object | None = None) -> Object:
        timeout = aiohttp.ClientTimeout(total=_CALL_SECONDS, connect=_CONNECT_SECONDS)
        async with self._open(method, path, query, body, timeout) as response:
            value = json.loads(await response.read() or b"{}")
        if not isinstance(value, dict):
            raise InternalError(f"{method} {path} at {self.server} answered {type(value).__name__}: expected an object")
        return value

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body else {})}
        try:
            call = await self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            answer = await self._client.call_api(*call, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            async with response:
                if response.status >= 400:
                    raise error_of(response.status, await response.text(), response.headers.get("Retry-After"))
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise UnavailableError(
                f"the Kubernetes API server at {self.server} does not answer {method} {path}: "
                f"{str(error) or type(error).__name__}"
            ) from error


def namespace_of_this_pod() -> str:
    """The namespace that this process runs in; "default" outside of a cluster."""
    try:
        return NAMESPACE_FILE.read_text().strip() or "default"
    except OSError:
        return "default"


def error_of(status: int, text: str, retry_after: str | None = None) -> EnginehouseError:
    """The error that an answer of the API server stands for."""
    try:
        value = json.loads(text)
        message, reason = str(value["message"]), str(value.get("reason", ""))
    except (ValueError, LookupError, TypeError):
        message, reason = text.strip()[:500] or f"HTTP status {status}", ""
    kind = _ERRORS.get(status, UnavailableError if status >= 500 else InternalError)
    if reason == "AlreadyExists":
        kind = AlreadyExistsError
    details = {"kubernetes_reason": reason} if reason else {}
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return kind(f"Kubernetes: {message}", details=details, retry_after_seconds=seconds)


_ERRORS: Mapping[int, type[EnginehouseError]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: AbortedError,
    410: OutOfRangeError,
    422: InvalidArgumentError,
    429: ResourceExhaustedError,
}


def _watch_event(value: Any) -> WatchEvent:
    event = WatchEvent(str(value["type"]), value["object"])
    if event.type == "ERROR":
        status = event.object
        raise error_of(int(status.get("code") or 500), json.dumps(status))
    return event
