"""Inference over the Open Inference Protocol, with what any server of it answers, at one server or several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from enginehouse.client.balancing.attempt import attempt
from enginehouse.client.balancing.calls import Balancer, Call
from enginehouse.client.balancing.discovery import Discovery
from enginehouse.client.balancing.failures import Failure, Kind, kind_of
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.balancing.pool import Pool
from enginehouse.client.balancing.servers import Server
from enginehouse.client.cluster import named
from enginehouse.client.connection import TLS
from enginehouse.client.device_memory import Placed
from enginehouse.client.fitting import Inputs, Wanted, fit_inputs, fit_targets, result_of
from enginehouse.client.index import merge_indexes
from enginehouse.client.inference_requests import Fitted, ModelKey, key_of, request_of, version_text
from enginehouse.client.inference_stream import Stream
from enginehouse.client.values import InferResult, ModelIndex, ModelSignature, TensorSpec
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from enginehouse.rpc.channels import Token

PROBE_SECONDS = 2.0
# What is asked of every server waits no longer than this for one that does not answer, where there are several.
EVERY_SECONDS = 5.0


class AsyncInference:
    """The inference servers of a client.

    Args:
        addresses: of the servers, or names that stand for several.
        timeout: seconds that a call may take.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout: float,
        tls: TLS | None,
        policy: Balancing,
        token: Token | None = None,
    ) -> None:
        self._pool = Pool(Discovery(addresses), policy, timeout=timeout, tls=tls, probe=probe, token=token)
        self._balancer = Balancer(self._pool, policy)
        self._signatures: dict[ModelKey, ModelSignature] = {}

    def expect_name(self, name: str) -> None:
        """What the servers' certificates are for, where their addresses do not say it. Before the first call."""
        self._pool.tls = named(self._pool.tls, name)

    async def suspend(self) -> None:
        """Close the channels until they are next used."""
        await self._pool.suspend()

    async def close(self) -> None:
        """Take back what this process registered with the servers, and close the channels."""
        await self._pool.close()

    async def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None,
        version: int | str | None,
        timeout: float | None,
        request_id: str | None,
        parameters: Mapping[str, Any] | None,
        casting: str,
        into: Mapping[str, Any] | None = None,
    ) -> InferResult:
        """One request (`Client.infer` says what the arguments mean)."""
        wanted = Wanted(model_name, version, outputs, into or {}, parameters, casting)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._pool.timeout if timeout is None else timeout)
        fitted = await self._fitted(wanted, inputs, deadline - loop.time())
        call = await self._call(fitted, request_id or "")
        try:
            response = await self._balancer.run(call, deadline - loop.time())
        except (InvalidArgumentError, NotFoundError):
            # The model may have been replaced by one of another signature.
            self._signatures.pop(key_of(model_name, version), None)
            raise
        return result_of(response, wanted.into)

    def infer_stream(
        self,
        model_name: str,
        requests: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        outputs: Sequence[str] | None,
        version: int | str | None,
        casting: str,
    ) -> AsyncIterator[InferResult]:
        """Many requests over one stream (`Client.infer_stream` says what the arguments mean)."""
        wanted = Wanted(model_name, version, outputs, {}, None, casting)
        return Stream(self._balancer, wanted, lambda inputs: self._fitted(wanted, inputs, None)).run(requests)

    async def signature(
        self, model_name: str, version: int | str | None, timeout: float | None = None
    ) -> ModelSignature:
        """What a served model takes and gives, asked of a server."""
        request = pb.ModelMetadataRequest(name=model_name, version=version_text(version))
        key = key_of(model_name, version)

        async def send(server: Server, left: float) -> Any:
            return await attempt(server, stub_of(server).ModelMetadata, request, left)

        message = await self._balancer.run(Call(key, send), timeout)
        signature = ModelSignature(
            name=message.name,
            versions=tuple(message.versions),
            platform=message.platform,
            inputs=_specs(message.inputs),
            outputs=_specs(message.outputs),
        )
        self._signatures[key] = signature
        return signature

    async def server_ready(self, timeout: float) -> bool:
        """Whether some server answers and says that it is ready."""
        answers = await self._ask_all(lambda s, left: _ready(s, pb.ServerReadyRequest(), left), timeout)
        return any(answer is True for answer in answers.values())

    async def model_ready(self, model_name: str, version: int | str | None, timeout: float | None = None) -> bool:
        """Whether some server has a version of a model ready; False for one that none knows.

        Raises:
            EnginehouseError: no server answers.
        """
        return any(_answered(await self._models_ready(model_name, version, timeout)))

    async def ready_everywhere(self, model_name: str, version: int | str | None, timeout: float | None = None) -> bool:
        """Whether every server that answers has a version of a model ready.

        Raises:
            EnginehouseError: no server answers.
        """
        return all(_answered(await self._models_ready(model_name, version, timeout)))

    async def index(self) -> list[ModelIndex]:
        """Every model and version that the servers know, with its state and why it is in it.

        Raises:
            EnginehouseError: no server answers.
        """

        async def ask(server: Server, left: float) -> list[ModelIndex]:
            method = stub_of(server).RepositoryIndex
            response = await server.endpoint.unary(method, pb.RepositoryIndexRequest(), timeout=left)
            return [ModelIndex(m.name, m.version, m.state, m.reason) for m in response.models]

        answers = await self._ask_all(ask, None)
        _answered(answers)
        return merge_indexes({s.address: a for s, a in answers.items() if not isinstance(a, EnginehouseError)})

    async def _models_ready(
        self, model_name: str, version: int | str | None, timeout: float | None
    ) -> Mapping[Server, Any]:
        request = pb.ModelReadyRequest(name=model_name, version=version_text(version))
        return await self._ask_all(lambda server, left: _ready(server, request, left), timeout)

    async def _ask_all(
        self, ask: Callable[[Server, float], Awaitable[Any]], timeout: float | None
    ) -> Mapping[Server, Any]:
        """What each server answers, or the error."""
        servers = await self._pool.servers(timeout)
        left = self._pool.timeout if timeout is None else timeout
        if len(servers) > 1:
            left = min(left, EVERY_SECONDS)

        async def one(server: Server) -> Any:
            try:
                return await ask(server, left)
            except EnginehouseError as error:
                return error

        return dict(zip(servers, await asyncio.gather(*(one(server) for server in servers)), strict=True))

    async def _call(self, fitted: Fitted, request_id: str) -> Call[Any]:
        # A sequence's state would differ after its requests ran twice; so would an array that two servers write.
        exclusive = bool(fitted.targets) or "sequence_id" in (fitted.wanted.parameters or {})
        key = key_of(fitted.wanted.model_name, fitted.wanted.version)
        if fitted.device_arrays:
            return await self._device_call(fitted, request_id, key, exclusive)
        request: Any = None

        async def send(server: Server, left: float) -> Any:
            nonlocal request
            if request is None:
                request = await request_of(fitted, request_id, server.memory, [])
            return await attempt(server, stub_of(server).ModelInfer, request, left)

        return Call(key, send, exclusive)

    async def _device_call(self, fitted: Fitted, request_id: str, key: ModelKey, exclusive: bool) -> Call[Any]:
        async def send(server: Server, left: float) -> Any:
            # A server that was started anew knows none of our device memory. It says so of one region at a time,
            # before it computes anything.
            for _ in range(fitted.device_arrays):
                try:
                    return await self._send_device(server, fitted, request_id, left)
                except Failure as failure:
                    if not server.memory.forget(failure.error.details.get("region", "")):
                        raise
            return await self._send_device(server, fitted, request_id, left)

        if len(await self._pool.servers()) == 1:
            return Call(key, send, exclusive)  # the server says itself if it cannot
        return Call(
            (*key, "device memory"),
            send,
            exclusive,
            usable=lambda server: server.local,
            else_say=f"{fitted.wanted.model_name}: device arrays need an inference server on this machine, and none of "
            "the addresses is this machine's: pass NumPy arrays",
        )

    async def _send_device(self, server: Server, fitted: Fitted, request_id: str, left: float) -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + left
        placed: list[Placed] = []
        try:
            try:
                request = await request_of(fitted, request_id, server.memory, placed)
            except (FailedPreconditionError, InvalidArgumentError) as error:
                raise Failure(error, Kind.ABSENT) from None  # a server with another device may take it
            except EnginehouseError as error:
                raise Failure(error, kind_of(error)) from None
            return await attempt(server, stub_of(server).ModelInfer, request, max(0.0, end - loop.time()))
        finally:
            if placed:
                await server.memory.release(placed)

    async def _fitted(self, wanted: Wanted, inputs: Inputs, timeout: float | None) -> Fitted:
        signature = self._signatures.get(key_of(wanted.model_name, wanted.version))
        if signature is not None:
            try:
                return _fit(wanted, inputs, signature)
            except InvalidArgumentError:
                pass  # what we remember may be an older version's signature: ask before refusing
        return _fit(wanted, inputs, await self.signature(wanted.model_name, wanted.version, timeout))


def stub_of(server: Server) -> Any:
    """The protocol's stub on a server's channel."""
    return server.endpoint.stub(service_pb2_grpc.GRPCInferenceServiceStub)


async def probe(server: Server) -> bool:
    """Whether a server answers and says that it is ready."""
    try:
        return bool(await _ready(server, pb.ServerReadyRequest(), PROBE_SECONDS))
    except EnginehouseError:
        return False


async def _ready(server: Server, request: Any, timeout: float) -> bool:
    stub = stub_of(server)
    method = stub.ModelReady if isinstance(request, pb.ModelReadyRequest) else stub.ServerReady
    try:
        return bool((await server.endpoint.unary(method, request, timeout=timeout)).ready)
    except (NotFoundError, InvalidArgumentError):
        return False


def _answered(answers: Mapping[Server, Any]) -> list[Any]:
    """The answers that are none of an error.

    Raises:
        EnginehouseError: there is none; the first server's.
    """
    found = [answer for answer in answers.values() if not isinstance(answer, EnginehouseError)]
    if not found:
        raise next(iter(answers.values()))
    return found


def _fit(wanted: Wanted, inputs: Inputs, signature: ModelSignature) -> Fitted:
    return Fitted(wanted, fit_inputs(inputs, signature, wanted.casting), fit_targets(wanted.into, signature), signature)


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)
