"""The engine host in this process: parses and checks requests, has them computed, counts and traces them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from enginehouse.errors import EnginehouseError, InvalidArgumentError
from enginehouse.workers.regions import held
from enginehouse.workers.shared import SharedPart
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.models.version import ModelVersion
from enginehouse_inference.protocol.parameters import boolean
from enginehouse_inference.protocol.regions import Regions
from enginehouse_inference.protocol.request import CheckedRequest, check_request
from enginehouse_inference.protocol.response import encode_response
from enginehouse_inference.protocol.wire import encode_stream_response, parse_infer_request
from enginehouse_inference.refusals import Refusals
from enginehouse_inference.service.host import Metadata
from enginehouse_inference.service.management import ManagementMethods
from enginehouse_inference.tracing.trace import TRACEPARENT, Trace, Tracing

_log = structlog.get_logger("infer")

TRACE_KEYS = (TRACEPARENT, "tracestate")


@dataclass(frozen=True)
class Divided:
    """A serialized ModelInferRequest without its raw input contents, and where a front put those."""

    rest: bytes
    raw: Sequence[SharedPart]


class LocalHost:
    """An `EngineHost`. It takes and gives serialized messages, so that tensors are not copied through protobuf.

    Args:
        refusals: counts the requests that reach no model.
        tracing: says which requests are traced.
    """

    def __init__(
        self, catalog: Catalog, regions: Regions, refusals: Refusals, tracing: Tracing, management: ManagementMethods
    ) -> None:
        self._catalog = catalog
        self._regions = regions
        self._refusals = refusals
        self._tracing = tracing
        self._management = management

    async def manage(self, method: str, request: Any) -> Any:
        """See `EngineHost.manage`."""
        return await getattr(self._management, method)(request)

    async def infer(self, message: bytes | Divided, deadline_ns: int | None, metadata: Metadata) -> bytes:
        """See `EngineHost.infer`."""
        request, raw = self._parse(message)
        return await self._infer("ModelInfer", request, raw, metadata, deadline_ns)

    async def infer_in_stream(self, message: bytes | Divided, strict: bool, metadata: Metadata) -> bytes:
        """See `EngineHost.infer_in_stream`."""
        request = None
        try:
            request, raw = self._parse(message)
            final = boolean(request.parameters, "triton_enable_empty_final_response")
            return encode_stream_response(await self._infer("ModelStreamInfer", request, raw, metadata, final=final))
        except Exception as error:
            if strict:
                raise
            text = _message(error)
        response = service_pb2.ModelStreamInferResponse(error_message=text)
        if request is not None:
            # So that a client knows whose error it is.
            response.infer_response.model_name = request.model_name
            response.infer_response.id = request.id
        return bytes(response.SerializeToString())

    def _parse(self, message: bytes | Divided) -> tuple[Any, Any]:
        try:
            if not isinstance(message, Divided):
                return parse_infer_request(message)
            try:
                return service_pb2.ModelInferRequest.FromString(message.rest), message.raw
            except DecodeError as error:
                raise InvalidArgumentError(f"the request is not a ModelInferRequest: {error}") from error
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
        self,
        method: str,
        request: Any,
        raw: Any,
        metadata: Metadata,
        deadline_ns: int | None = None,
        *,
        final: bool = False,
    ) -> bytes:
        tracing = self._tracing
        trace = tracing.begin(method, _caller(metadata)) if tracing.enabled else None
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
        try:
            response = encode_response(
                model=version.model,
                version=version.version,
                identifier=request.id,
                requested=checked.outputs,
                computed={t.name: t for t in answer.outputs},
                batched=version.loaded.batched,
                final=final,
            )
        except EnginehouseError as error:
            # Whoever keeps the error keeps the frames of its traceback, and with them the worker's memory.
            del answer
            raise error.with_traceback(None) from None
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


def _caller(metadata: Metadata) -> Mapping[str, str]:
    """What the caller's metadata says of its trace."""
    return {key: value for key, value in metadata() or () if key in TRACE_KEYS}
