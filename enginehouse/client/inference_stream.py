"""Many requests over one stream, which stays at one server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from tritonclient.grpc import service_pb2_grpc

from enginehouse.client.balancing.calls import Balancer
from enginehouse.client.balancing.failures import Failure, kind_of
from enginehouse.client.connection import Outgoing
from enginehouse.client.device_memory import Placed
from enginehouse.client.fitting import Inputs, Wanted, result_of
from enginehouse.client.inference_requests import Fitted, key_of, request_of
from enginehouse.client.values import InferResult
from enginehouse.errors import EnginehouseError

# Requests of a stream that wait for their answers.
WINDOW = 32


class Stream:
    """A stream of requests for one model.

    Args:
        fit: makes inputs what the model takes.
    """

    def __init__(self, balancer: Balancer, wanted: Wanted, fit: Callable[[Inputs], Awaitable[Fitted]]) -> None:
        self._balancer = balancer
        self._wanted = wanted
        self._fit = fit

    async def run(self, requests: AsyncIterable[Inputs] | Iterable[Inputs]) -> AsyncIterator[InferResult]:
        """The results, in the order of the requests.

        Raises:
            EnginehouseError: a request failed, or the server went away; the stream ends there.
        """
        window = asyncio.Semaphore(WINDOW)
        prefix = uuid.uuid4().hex[:8]
        arrived: dict[str, Any] = {}
        placed: list[Placed] = []
        name = self._wanted.model_name
        key = key_of(name, self._wanted.version)
        pool = self._balancer.pool
        server = self._balancer.choose(await pool.servers(), key)
        sent = turn = 0
        ended = False

        async def messages() -> AsyncIterator[Any]:
            nonlocal sent
            async for inputs in _iterate(requests):
                await window.acquire()
                message = await request_of(await self._fit(inputs), f"{prefix}-{sent}", server.memory, placed)
                if ended:
                    return
                sent += 1
                pool.take(server)
                yield message

        # From the start, so that streams that begin together spread too.
        pool.take(server)
        try:
            method = server.endpoint.stub(service_pb2_grpc.GRPCInferenceServiceStub).ModelStreamInfer
            async for response in server.endpoint.stream(method, Outgoing(messages())):
                if response.error_message and not response.infer_response.id:
                    raise EnginehouseError(f"{name}: {response.error_message}")
                arrived[response.infer_response.id] = response
                while (ready := arrived.pop(f"{prefix}-{turn}", None)) is not None:
                    turn += 1
                    pool.put_back(server)
                    window.release()
                    if ready.error_message:
                        raise EnginehouseError(f"{name}: {ready.error_message}")
                    yield result_of(ready.infer_response, {})
        except EnginehouseError as error:
            self._balancer.failed(server, key, Failure(error, kind_of(error)))
            raise
        finally:
            ended = True
            for _ in range(sent - turn + 1):
                pool.put_back(server)
            await server.memory.release(placed)


async def _iterate(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
