"""The one interceptor chain: admission, limits, principal, authorization, errors and the log line of every call."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from enginehouse.errors import (
    EnginehouseError,
    InternalError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from enginehouse.rpc.authorization import (
    ANONYMOUS,
    Admission,
    AllowAll,
    Authorizer,
    ResourceOf,
    current_principal,
    principal_of,
    resource_of,
    set_principal,
)
from enginehouse.rpc.denials import Denials
from enginehouse.rpc.status import shortened, trailing_metadata

# Probes must be answered by a server that is full, or Kubernetes restarts it for being busy.
UNLIMITED_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_log = structlog.get_logger("rpc")


class CallChain(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler of a server.

    A handler raises `EnginehouseError`; the caller receives its status with details. Any other exception is logged with
    its traceback and answered INTERNAL. A call over the limit answers RESOURCE_EXHAUSTED without running.

    Args:
        resources: by service, what its requests name; `resource_of` where it does not say.
        admission: looks at calls before their requests are read; every call is let in when None.
        certificates: whether connections may say who calls, by their clients' certificates.
    """

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        max_concurrent_rpcs: int,
        resources: Mapping[str, ResourceOf] | None = None,
        admission: Admission | None = None,
        certificates: bool = True,
    ) -> None:
        self._authorizer = authorizer
        self._admission = admission
        self._certificates = certificates
        self._denials = Denials()
        self._open = isinstance(authorizer, AllowAll)
        self._limit = max_concurrent_rpcs
        self._resources = dict(resources or {})
        self._running = 0
        # Bound once, so that a line that is not written costs nothing.
        self._log = _log.bind()
        # A method's handler, and what we made of it.
        self._wrapped: dict[str, tuple[Any, Any]] = {}

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
        if handler is None:
            return None
        method = str(handler_call_details.method)
        if self._admission is not None:
            try:
                await self._admission.admit(method, handler_call_details.invocation_metadata or ())
            except Exception as error:
                return _refusal(*self._status_of(error, method))
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

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

    def _identify(self, context: Any) -> None:
        """The connection says who calls, where nothing in the call did."""
        if self._certificates and (self._admission is None or current_principal() is ANONYMOUS):
            set_principal(principal_of(context.auth_context()))

    def _unary(
        self, behaviour: Callable[[Any, Any], Awaitable[Any]], method: str
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        authorized = self._authorization(method)

        async def call(request: Any, context: Any) -> Any:
            try:
                with self._counted(method):
                    self._identify(context)
                    return await behaviour(request if authorized is None else await authorized(request), context)
            except Exception as error:
                status = self._status_of(error, method)
            # The call keeps what `abort` raises, and that this frame: what the frame holds would wait for a garbage
            # collection. So the error is gone by now, and the request goes.
            del request
            return await context.abort(*status)

        return call

    def _streaming(self, behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
        if not inspect.isasyncgenfunction(behaviour):
            return self._unary(behaviour, method)  # it writes through its context
        authorized = self._authorization(method)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                with self._counted(method):
                    self._identify(context)
                    allowed = request if authorized is None else await authorized(request)
                    # Closed when the caller goes, and not when the garbage collector comes by.
                    async with aclosing(behaviour(allowed, context)) as responses:
                        async for response in responses:
                            yield response
                return
            except Exception as error:
                status = self._status_of(error, method)
            request = allowed = responses = None  # as above
            await context.abort(*status)

        return stream

    def _authorization(self, method: str) -> Callable[[Any], Awaitable[Any]] | None:
        """What a method's request passes on its way in; None when every caller is allowed."""
        if self._open:
            return None
        find_resource = self._resources.get(method[1:].rpartition("/")[0], resource_of)

        async def authorize(resource: str) -> None:
            await self._authorizer.authorize(current_principal(), method, resource)

        async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            """A stream is authorized by its first message, and by each that names another resource."""
            allowed: str | None = None
            async for request in requests:
                resource = find_resource(method, request)
                if allowed is None or (resource and resource != allowed):
                    await authorize(resource)
                    allowed = resource
                yield request

        async def authorized(request: Any) -> Any:
            if hasattr(request, "__aiter__"):
                return each(request)
            await authorize(find_resource(method, request))
            return request

        return authorized

    @contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        """Counts a call, refuses it when there are too many, and logs how it ended."""
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
                yield
            finally:
                self._running -= limited
        except EnginehouseError as error:
            status = error.reason
            raise
        except Exception as error:
            status = "ABORTED_BY_HANDLER" if isinstance(error, grpc.aio.AbortError) else "INTERNAL"
            raise
        except BaseException:  # the caller has gone
            status = "CANCELLED"
            raise
        finally:
            self._log.debug(
                "call", method=method, status=status, milliseconds=round((time.perf_counter() - started) * 1e3, 3)
            )

    def _status_of(self, error: Exception, method: str) -> tuple[Any, str, Any]:
        """What `abort` takes for an error of a handler; raises what a handler's own `abort` raised."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, EnginehouseError):
            self._log.exception("call failed", method=method)
            error = InternalError(
                f"internal error in {method}: {type(error).__name__}: {error} (the server's log has more)"
            )
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError):
            caller = current_principal().name
            self._denials.log("refused", method=method, status=error.reason, principal=caller, reason=error.message)
        return error.code, shortened(error.message), trailing_metadata(error)


def _refusal(code: Any, message: str, metadata: Any) -> Any:
    """A handler that answers without reading the request, whatever kind of method it stands for."""

    async def refuse(requests: Any, context: Any) -> None:
        await context.abort(code, message, metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
