"""The standard health check, spoken without the package of its stubs: two messages of one field each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from enginehouse.client.connection import Endpoint
from enginehouse.errors import EnginehouseError

_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckResponse{status: SERVING}: field 1, varint 1.
_SERVING = b"\x08\x01"


async def is_serving(endpoint: Endpoint, timeout: float) -> bool:
    """Whether the server answers within `timeout` seconds and says that it is SERVING."""
    try:
        check: Callable[..., Awaitable[bytes]] = endpoint.channel().unary_unary(_CHECK)
        return await endpoint.unary(check, b"", timeout=timeout) == _SERVING
    except EnginehouseError:
        return False
