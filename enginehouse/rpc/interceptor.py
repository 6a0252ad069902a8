"""The one interceptor chain: limits, principal, authorization, errors and the log line of every call."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from enginehouse.errors import EnginehouseError, InternalError, ResourceExhaustedError
from enginehouse.rpc.authorization import Authorizer, current_principal, principal_of, resource_of, set_principal
from enginehouse.rpc.status import trailing_metadata

# Probes must be answered by a server that is full, or Kubernetes restarts it for being busy.
UNLIMITED_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_log = structlog.get_logger("rpc")


class CallChain(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler of a server.

    A handler raises `EnginehouseError`; the caller receives its status with details. Any other exception is logged with
    its traceback and answered INTERNAL. A call over the limit answers RESOURCE_EXHAUSTED without running.
    """

    def __init__(self, *, authorizer: Authorizer, max_concurrent_rpcs: int) -> None:
        self._authorizer = authorizer
        self._limit = max_concurrent_rpcs
        self._running = 0

    @property
    def running(self) -> int:
        """Calls in flight, probes excepted."""
        return self._running

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return handler if handler is None else self._wrap(handler, str(handler_call_details.method))

    def _wrap(self, handler: Any, method: str) -> Any:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(handler.stream_stream, method), **codecs)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.stream_unary, method), **codecs)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(handler.unary_stream, method), **codecs)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), **codecs)

    def _unary(
        self, behaviour: Callable[[Any, Any], Awaitable[Any]], method: str
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            async with self._around(method, context):
                return await behaviour(await self._authorized(request, method), context)

        return call

    def _streaming(self, behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
        if not inspect.isasyncgenfunction(behaviour):
            return self._unary(behaviour, method)  # it writes through its context

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._around(method, context):
                async for response in behaviour(await self._authorized(request, method), context):
                    yield response

        return stream

    async def _authorized(self, request: Any, method: str) -> Any:
        """The request once its call is authorized; a request stream is authorized by its first message."""
        if hasattr(request, "__aiter__"):
            return self._authorized_stream(request, method)
        await self._authorize(method, request)
        return request

    async def _authorized_stream(self, requests: AsyncIterator[Any], method: str) -> AsyncIterator[Any]:
        first = True
        async for request in requests:
            if first:
                await self._authorize(method, request)
                first = False
            yield request

    async def _authorize(self, method: str, request: Any) -> None:
        await self._authorizer.authorize(current_principal(), method, resource_of(request))

    @asynccontextmanager
    async def _around(self, method: str, context: Any) -> AsyncIterator[None]:
        limited = not method.startswith(UNLIMITED_PREFIXES)
        started = time.perf_counter()
        status = "OK"
        try:
            if limited and self._running >= self._limit:
                raise ResourceExhaustedError(
                    f"the server already serves {self._limit} calls: try again later, "
                    "or raise ENGINEHOUSE_MAX_CONCURRENT_RPCS",
                    retry_after_seconds=0.1,
                )
            self._running += limited
            try:
                set_principal(principal_of(context.auth_context()))
                yield
            finally:
                self._running -= limited
        except EnginehouseError as error:
            status = error.reason
            await context.abort(error.code, error.message, trailing_metadata(error))
        except grpc.aio.AbortError:
            status = "ABORTED_BY_HANDLER"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "CANCELLED"
            raise
        except Exception as error:
            status = "INTERNAL"
            _log.exception("call failed", method=method)
            internal = InternalError(
                f"internal error in {method}: {type(error).__name__}: {error} (the server's log has more)"
            )
            await context.abort(internal.code, internal.message, trailing_metadata(internal))
        finally:
            _log.debug(
                "call", method=method, status=status, milliseconds=round((time.perf_counter() - started) * 1e3, 3)
            )
