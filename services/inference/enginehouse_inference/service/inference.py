"""ModelInfer and ModelStreamInfer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from tritonclient.grpc import service_pb2

from enginehouse.errors import EnginehouseError
from enginehouse.workers.regions import held
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.models.version import ModelVersion
from enginehouse_inference.protocol.parameters import boolean
from enginehouse_inference.protocol.regions import Regions
from enginehouse_inference.protocol.request import CheckedRequest, check_request
from enginehouse_inference.protocol.response import encode_response
from enginehouse_inference.protocol.wire import encode_stream_response, parse_infer_request
from enginehouse_inference.refusals import Refusals
from enginehouse_inference.tracing.trace import TRACEPARENT, Trace, Tracing

_log = structlog.get_logger("infer")

# Metadata by which a caller says that an error shall end its stream.
STRICT_KEY = "triton_grpc_error"
_TRACE_KEYS = (TRACEPARENT, "tracestate")


class InferenceMethods:
    """Takes and gives serialized messages, so that tensors are not copied through protobuf.

    Args:
        refusals: counts the requests that reach no model.
        tracing: says which requests are traced.
        stream_window: requests of one stream that are worked on at once.
    """

    def __init__(
        self, catalog: Catalog, regions: Regions, refusals: Refusals, tracing: Tracing, stream_window: int
    ) -> None:
        self._catalog = catalog
        self._regions = regions
        self._refusals = refusals
        self._tracing = tracing
        self._window = stream_window
        self._stopping = asyncio.Event()

    def stop_streams(self) -> None:
        """Take no more requests from open streams; each ends when its last answer is out."""
        self._stopping.set()

    async def infer(self, data: bytes, context: Any) -> bytes:
        """ModelInfer: a serialized ModelInferRequest to a serialized ModelInferResponse."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)
        request, raw = self._parse(data)
        return await self._infer("ModelInfer", request, raw, context, deadline)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ModelStreamInfer: answers in the order of the requests.

        An error is an answer, unless the caller's metadata has "triton_grpc_error: true": then it ends the stream with
        its status, as a client of Triton may ask.
        """
        strict = _has(context, STRICT_KEY, "true")
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._window)
        running: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            iterator = requests.__aiter__()
            stopping = asyncio.create_task(self._stopping.wait())
            upcoming: asyncio.Future[bytes] | None = None
            try:
                while True:
                    await room.acquire()
                    upcoming = asyncio.ensure_future(iterator.__anext__())
                    waited: set[asyncio.Future[Any]] = {upcoming, stopping}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if not upcoming.done():
                        upcoming.cancel()
                        await asyncio.gather(upcoming, return_exceptions=True)
                        return
                    try:
                        data = upcoming.result()
                    except StopAsyncIteration:
                        return
                    task = asyncio.create_task(self._stream_one(data, context, strict))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    answers.put_nowait(task)
            finally:
                stopping.cancel()
                if upcoming is not None:
                    upcoming.cancel()
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await answers.get()) is not None:
                answer = await task
                room.release()
                yield answer
            await reader  # an error of the stream itself
        finally:
            reader.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(reader, *running, return_exceptions=True)

    async def _stream_one(self, data: bytes, context: Any, strict: bool) -> bytes:
        request = None
        try:
            request, raw = self._parse(data)
            final = boolean(request.parameters, "triton_enable_empty_final_response")
            return encode_stream_response(await self._infer("ModelStreamInfer", request, raw, context, final=final))
        except Exception as error:
            if strict:
                raise
            message = _message(error)
        response = service_pb2.ModelStreamInferResponse(error_message=message)
        if request is not None:
            # So that a client knows whose error it is.
            response.infer_response.model_name = request.model_name
            response.infer_response.id = request.id
        return bytes(response.SerializeToString())

    def _parse(self, data: bytes) -> tuple[Any, Any]:
        try:
            return parse_infer_request(data)
        except EnginehouseError as error:
            self._refusals.add(error)
            raise

    def _find(self, request: Any) -> ModelVersion:
        try:
            return self._catalog.find(request.model_name, request.model_version)
        except EnginehouseError as error:
            self._refusals.add(error)
            raise

    async def _infer(
        self, method: str, request: Any, raw: Any, context: Any, deadline_ns: int | None = None, *, final: bool = False
    ) -> bytes:
        tracing = self._tracing
        trace = tracing.begin(method, _caller(context)) if tracing.enabled else None
        if trace is None:
            return await self._counted(request, raw, deadline_ns, None, final)
        trace.named(request.model_name, request.model_version, request.id)
        try:
            return await self._counted(request, raw, deadline_ns, trace, final)
        except BaseException as error:
            trace.failed(error)
            raise
        finally:
            tracing.end(trace)

    async def _counted(
        self, request: Any, raw: Any, deadline_ns: int | None, trace: Trace | None, final: bool
    ) -> bytes:
        started = time.monotonic_ns()
        version = self._find(request)
        statistics = version.statistics
        try:
            checked = check_request(request, raw, version.signature, self._regions, repr(version.model))
            # Unregistered or not, what it names stays open while it runs.
            with held(checked.device_memory):
                return await self._compute(request, checked, version, deadline_ns, started, trace, final)
        except asyncio.CancelledError:
            statistics.cancelled(time.monotonic_ns() - started)
            raise
        except Exception as error:
            statistics.failed(error, time.monotonic_ns() - started)
            raise

    async def _compute(
        self,
        request: Any,
        checked: CheckedRequest,
        version: ModelVersion,
        deadline_ns: int | None,
        started: int,
        trace: Trace | None,
        final: bool,
    ) -> bytes:
        queued = 0 if trace is None else time.time_ns()
        # The answer's shared memory is the worker's again when this call returns and drops it.
        answer = await version.infer(checked, deadline_ns)
        response = encode_response(
            model=version.model,
            version=version.version,
            identifier=request.id,
            requested=checked.outputs,
            computed={t.name: t for t in answer.outputs},
            batched=version.loaded.batched,
            final=final,
        )
        version.statistics.answered(checked.rows, answer, time.monotonic_ns() - started)
        if trace is not None:
            trace.named(version.model, version.version, request.id)
            trace.answered(checked.rows, queued, answer)
        return response


def _message(error: Exception) -> str:
    if isinstance(error, EnginehouseError):
        return error.message
    _log.exception("stream request failed")
    return f"internal error: {type(error).__name__}: {error} (the server's log has more)"


def _has(context: Any, key: str, value: str) -> bool:
    return any(item == (key, value) for item in context.invocation_metadata() or ())


def _caller(context: Any) -> dict[str, str]:
    """What the caller's metadata says of its trace."""
    return {key: value for key, value in context.invocation_metadata() or () if key in _TRACE_KEYS}


def handlers(methods: InferenceMethods) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Handlers without (de)serializers: bytes in, bytes out."""
    return {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(methods.infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(methods.stream),
    }
