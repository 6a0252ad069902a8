"""One try of a unary call at one server, which fails with what that says of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio

from enginehouse.client.balancing.failures import Failure, kind_of
from enginehouse.client.balancing.servers import Server
from enginehouse.rpc.status import UNREACHABLE

_R = TypeVar("_R")


async def attempt(server: Server, method: Callable[..., Awaitable[_R]], request: Any, timeout: float) -> _R:
    """Make a call.

    Raises:
        Failure: it did not come to an answer.
    """
    try:
        return await method(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise failure_of(server, error) from None


def failure_of(server: Server, error: grpc.aio.AioRpcError) -> Failure:
    """What a status from a server, or from gRPC in its place, means."""
    text = (error.details() or "").lower()
    converted = server.endpoint.error(error)
    return Failure(converted, kind_of(converted, connected=not any(sign in text for sign in UNREACHABLE)))
