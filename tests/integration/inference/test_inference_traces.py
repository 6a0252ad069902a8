"""Traces of a real server, as an OpenTelemetry collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from collector import collecting
from inference_world import Server, floats, load, tensor
from tritonclient.grpc import InferenceServerException, service_pb2, service_pb2_grpc

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def infer(address: str, parent: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name="double", id="seven")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    request.raw_input_contents.append(np.ones((2, 4), np.float32).tobytes())
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ModelInfer(request, timeout=30, metadata=(("traceparent", parent),))


def test_requests_are_traced_where_their_callers_are_and_at_the_rate_elsewhere(
    start_server: Callable[..., Server], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        server = start_server(tracing="otlp", trace_rate="2")
        client = server.client()
        load(client, models, "double")
        infer(server.address, f"00-{TRACE}-{SPAN}-01")
        infer(server.address, f"00-{TRACE}-{SPAN}-00")  # its caller does not record it
        with pytest.raises(InferenceServerException):  # the first of those without a caller's trace
            client.infer("nothing", [tensor("x", floats(1), "FP32")])
        with pytest.raises(InferenceServerException):  # the second: traced
            client.infer("nothing", [tensor("x", floats(1), "FP32")])
        client.update_trace_settings(settings={"trace_level": ["OFF"]})
        infer(server.address, f"00-{TRACE}-{SPAN}-01")
        assert server.stop() == 0  # what was not sent yet is sent
    spans = {
        span.trace_id.hex() == TRACE: span for span in collector.named("inference.GRPCInferenceService/ModelInfer")
    }
    assert len(collector.spans) == 6 and collector.services == {"enginehouse-inference"}
    ours = spans[True]
    assert ours.parent_span_id.hex() == SPAN and ours.kind == ours.SPAN_KIND_SERVER
    described = attributes(ours)
    assert (described["enginehouse.model"], described["enginehouse.version"]) == ("double", "1")
    assert (described["enginehouse.request_id"], described["enginehouse.rows"]) == ("seven", 2)
    at = ours.start_time_unix_nano
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        (step,) = collector.named(name)
        assert step.parent_span_id == ours.span_id and step.trace_id == ours.trace_id
        assert at <= step.start_time_unix_nano <= step.end_time_unix_nano
        at = step.end_time_unix_nano
    refused = spans[False]
    assert refused.status.code == refused.status.STATUS_CODE_ERROR and "NOT_FOUND" in refused.status.message
    assert attributes(refused)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    start_server: Callable[..., Server], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = start_server(tracing="otlp", trace_rate="1")
    client = server.client()
    load(client, models, "double")
    for _ in range(20):
        client.infer("double", [tensor("x", floats(1), "FP32")])
    assert server.stop() == 0
    # By itself, OpenTelemetry would have tried again until its own ten seconds for a batch were over.
    assert "Failed to export" not in server.log()


def test_without_tracing_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, enginehouse_inference.main\n"
        "from enginehouse_inference.tracing.start import start_tracing\n"
        "assert start_tracing('off', 1).exporter is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
