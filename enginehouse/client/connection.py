"""A channel to one service: made when first used, remade after a fork or in another event loop, closed once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from enginehouse.client.owner import LoopOwner
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from enginehouse.rpc.channels import TLS, Token, open_channel
from enginehouse.rpc.status import from_rpc_error

__all__ = ["CLOSED", "TLS", "Endpoint", "Outgoing", "backoff"]

CLOSED = "this client is closed: make another one"

# Between looks at the files of certificates.
LOOK_SECONDS = 1.0

_S = TypeVar("_S")
_R = TypeVar("_R")

# Calls that may be sent twice: reads, and those whose second run finds the work of the first done. Inference is not
# among them: a caller decides whether a request that a crash interrupted is worth another try.
_RETRIED = (
    ("enginehouse.v1.Blobs", ("FindBlob",)),
    ("enginehouse.v1.Models", ("GetModel", "ListModels", "GetDataset", "ListDatasets", "CreateModel", "CreateDataset")),
    ("enginehouse.v1.Engines", ("GetEngine", "ListEngines", "PinEngine", "ImportEngine", "GetAlias", "ListAliases")),
    ("enginehouse.v1.Optimizer", ("Optimize", "RetryOptimization", "GetStageLog")),
    ("enginehouse.v1.ServingConfigs", ("GetServingConfig", "ListServingConfigs")),
    ("enginehouse.v1.Telemetry", ("ListDevices", "GetSnapshot", "ListSamples")),
    ("enginehouse.v1.ClusterTelemetry", ("GetClusterSnapshot",)),
    ("enginehouse.v1.Store", ("GetUsage", "CollectGarbage")),
    ("google.longrunning.Operations", ("GetOperation", "ListOperations", "CancelOperation")),
)
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for service, methods in _RETRIED for method in methods],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that restarts is found again within a second, not after gRPC's own two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.service_config", _SERVICE_CONFIG),
)


def _is_cut_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write failed before the status came that says why: gRPC then gives this one in its place."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


class Outgoing(AsyncIterator[_R]):
    """Messages to send on a stream. It keeps the error of their source, which gRPC turns into a bare cancellation."""

    def __init__(self, messages: AsyncIterator[_R]) -> None:
        self._messages = messages
        self.error: Exception | None = None

    async def __anext__(self) -> _R:
        try:
            return await self._messages.__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise


class Endpoint:
    """One service's address. Stubs are made from its channel, and its calls raise our errors.

    Args:
        timeout: seconds that a call may take.
        tls: how to speak TLS; plain text when None. Once its files are replaced, calls go over a new connection.
        token: goes with every call.
        own_connection: share no connection with another channel to the same address, as gRPC does otherwise.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float,
        tls: TLS | None,
        token: Token | None = None,
        own_connection: bool = False,
    ) -> None:
        self.address = address
        self._own_connection = own_connection
        self.timeout = timeout
        self.tls = tls
        self._token = token
        self._stamps = tls.stamps() if tls is not None else ()
        self._looked = 0.0
        # Of certificates that were replaced: their streams go on.
        self._old: list[grpc.aio.Channel] = []
        self._channel: grpc.aio.Channel | None = None
        self._owner: LoopOwner | None = None
        self._stubs: dict[Any, Any] = {}
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """The channel of the event loop that runs now.

        Raises:
            FailedPreconditionError: the client is closed.
        """
        if self._closed:
            raise FailedPreconditionError(CLOSED)
        loop = asyncio.get_running_loop()
        if self._channel is None or self._owner is None or not self._owner.runs:
            self._stubs = {}
            self._owner = LoopOwner()
            self._channel = self._connect()
        elif self._stamps and loop.time() - self._looked >= LOOK_SECONDS:
            self._looked = loop.time()
            self._renew(self._channel)
        return self._channel

    def stub(self, kind: Callable[[grpc.aio.Channel], _S]) -> _S:
        """The stub of that class on the channel."""
        channel = self.channel()
        if kind not in self._stubs:
            self._stubs[kind] = kind(channel)
        stub: _S = self._stubs[kind]
        return stub

    async def unary(self, method: Callable[..., Awaitable[_R]], request: Any, *, timeout: float | None = None) -> _R:
        """Make one call; `timeout` in seconds, the client's own when None.

        Raises:
            EnginehouseError: of the subclass that stands for the status.
        """
        try:
            return await method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None

    async def send(self, method: Callable[..., Awaitable[_R]], messages: AsyncIterator[Any]) -> _R:
        """Send a request stream and return its one response.

        Raises:
            EnginehouseError: of the subclass that stands for the status; and what the messages' source raised.
            UnavailableError: also when the stream ended in a write, for a reason that gRPC does not tell.
        """
        outgoing = Outgoing(messages)
        try:
            return await method(outgoing)
        except grpc.aio.AioRpcError as error:
            if outgoing.error is None and _is_cut_off(error):
                raise UnavailableError(f"the stream to {self.address} ended while it was being written") from None
            raise outgoing.error or self.error(error) from None
        except asyncio.CancelledError:
            if outgoing.error is not None:
                raise outgoing.error from None
            raise

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """Read a response stream to its end; leaving the iteration early cancels the call. `request` may be `Outgoing`.

        Raises:
            EnginehouseError: of the subclass that stands for the status.
        """
        call = method(request)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise getattr(request, "error", None) or self.error(error) from None
        except asyncio.CancelledError:
            if isinstance(request, Outgoing) and request.error is not None:
                raise request.error from None
            raise
        finally:
            call.cancel()

    def error(self, error: Any) -> EnginehouseError:
        """Our error of a failed call, which names the address when nothing answers there."""
        return from_rpc_error(error, target=self.address)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled. A second close does nothing."""
        self._closed = True
        await self.suspend()

    async def suspend(self) -> None:
        """Close the channel until it is next used."""
        channel, self._channel, self._stubs = self._channel, None, {}
        old, self._old = self._old, []
        if channel is not None and self._owner is not None and self._owner.runs:
            for one in (*old, channel):
                await one.close()

    def _connect(self) -> grpc.aio.Channel:
        self._stamps = self.tls.stamps() if self.tls is not None else ()
        options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", int(self._own_connection))]
        return open_channel(self.address, tls=self.tls, token=self._token, options=options)

    def _renew(self, channel: grpc.aio.Channel) -> None:
        """Take a new channel where the certificates were replaced by others that can be used."""
        if self.tls is None or self.tls.stamps() == self._stamps:
            return
        try:
            self._channel = self._connect()
        except InvalidArgumentError:
            return  # half replaced: the next change is looked at again
        self._stubs = {}
        self._old = [*self._old[-1:], channel]


async def backoff(attempt: int) -> None:
    """Wait before try number `attempt` + 1 of something that broke: 0.1 s, doubling, 2 s at most."""
    await asyncio.sleep(min(2.0, 0.1 * 2**attempt))
