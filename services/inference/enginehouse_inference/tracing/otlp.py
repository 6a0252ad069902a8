"""Traces to an OpenTelemetry collector, over OTLP. Imported only when tracing is on; needs the extra `otel`.

Where it goes, with which headers and certificates, and the name of the service are OpenTelemetry's own settings:
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and the others of its specification.
"""

from __future__ import annotations

import asyncio
import os
import threading

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from enginehouse_inference.tracing.trace import Trace

SERVICE = "inference.GRPCInferenceService"

# How long the end may wait for a collector. OpenTelemetry's own shutdown tries for half a minute, which is more than an
# orchestrator gives us.
CLOSE_SECONDS = 2.0


class OtlpExporter:
    """Makes spans of traces. A thread of OpenTelemetry's sends them, and drops them where the collector is away."""

    def __init__(self) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "enginehouse-inference"}
        # Not at the interpreter's exit: `close` is called, and by then the collector may be gone.
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._sender = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._sender))
        self._tracer = self._provider.get_tracer("enginehouse_inference")
        self._propagator = TraceContextTextMapPropagator()

    def export(self, trace: Trace) -> None:
        """A server span with one child a step, by OpenTelemetry's conventions for RPC where these have a name."""
        span = self._tracer.start_span(
            f"{SERVICE}/{trace.method}",
            context=self._propagator.extract(trace.caller),
            kind=SpanKind.SERVER,
            start_time=trace.start_ns,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": trace.method,
                "rpc.grpc.status_code": int(getattr(grpc.StatusCode, trace.status).value[0]),
                "enginehouse.model": trace.model,
                "enginehouse.version": trace.version,
                "enginehouse.request_id": trace.identifier,
                "enginehouse.rows": trace.rows,
            },
        )
        inside = set_span_in_context(span)
        for step in trace.steps:
            self._tracer.start_span(step.name, context=inside, start_time=step.start_ns).end(step.end_ns)
        if trace.status != "OK":
            span.set_status(Status(StatusCode.ERROR, f"{trace.status}: {trace.message}"))
        span.end(trace.end_ns)

    async def close(self) -> None:
        """Send what was not sent yet, as far as that takes no longer than `CLOSE_SECONDS`."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_SECONDS)
        if ending.is_alive():
            self._sender.shutdown(timeout_millis=0)  # ends its wait for the next attempt
