"""The metrics of a real server, read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from inference_world import LONG, Server, floats, load, steps, tensor, wait_for
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One reading of all samples."""

    def __init__(self, server: Server) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['metrics_port']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of the only sample with a name and these labels, others aside."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])


@pytest.fixture(scope="module")
def counting(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("counting"))
    try:
        for name in ("double", "slow"):
            load(server.client(), models, name, max_queue_size=1 if name == "slow" else 8)
        yield server
    finally:
        server.kill()


def test_requests_batches_and_their_times_are_counted(counting: Server) -> None:
    client = counting.client()
    for rows in (1, 3):
        client.infer("double", [tensor("x", floats(rows), "FP32")])
    scrape = Scrape(counting)
    ours = {"model": "double", "version": "1"}
    assert scrape("nv_inference_request_success", **ours) == 2
    assert scrape("nv_inference_count", **ours) == 4
    assert scrape("nv_inference_exec_count", **ours) == 2
    statistics = client.get_inference_statistics("double").model_stats[0].inference_stats
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        value = scrape(f"nv_inference_{name}_duration_us", **ours)
        assert value == getattr(statistics, name).ns // 1000
    whole = scrape("nv_inference_request_duration_us", **ours)
    assert whole == statistics.success.ns // 1000 > scrape("nv_inference_compute_infer_duration_us", **ours)
    assert scrape("nv_inference_pending_request_count", **ours) == 0
    assert scrape("enginehouse_inference_model_ready", **ours) == 1
    for name in ("request_seconds", "queue_seconds", "compute_seconds", "input_copy_seconds", "output_copy_seconds"):
        assert scrape(f"enginehouse_inference_{name}_count", **ours) == 2
        assert scrape(f"enginehouse_inference_{name}_bucket", le="+Inf", **ours) == 2
    assert scrape("enginehouse_inference_request_seconds_sum", **ours) == pytest.approx(whole / 1e6, abs=1e-5)
    assert scrape("enginehouse_inference_batch_rows_bucket", le="1.0", **ours) == 1
    assert scrape("enginehouse_inference_batch_rows_bucket", le="4.0", **ours) == 2
    assert scrape("enginehouse_inference_batch_rows_sum", **ours) == 4
    assert scrape("process_resident_memory_bytes") > 1e6


def test_answers_from_the_cache_are_successes_and_no_inferences(counting: Server, models: Path) -> None:
    client = counting.client()
    load(client, models, "double", "cached", response_cache_bytes=1 << 20)
    for start in (0, 0, 0, 1):
        client.infer("cached", [tensor("x", floats(2, start=start), "FP32")])
    scrape, (statistics,) = Scrape(counting), client.get_inference_statistics("cached").model_stats
    assert scrape("nv_cache_num_hits_per_model", model="cached") == 2 == statistics.inference_stats.cache_hit.count
    assert scrape("nv_cache_num_misses_per_model", model="cached") == 2 == statistics.inference_stats.cache_miss.count
    assert scrape("nv_cache_hit_duration_per_model", model="cached") > 0
    assert scrape("enginehouse_inference_cache_bytes", model="cached") > 2 * 32
    assert scrape("nv_inference_request_success", model="cached") == 4
    assert scrape("nv_inference_count", model="cached") == 4  # two requests of two rows
    client.unload_model("cached")


def test_failures_have_reasons_and_unknown_names_add_no_label(counting: Server) -> None:
    client = counting.client()
    for _ in range(3):
        with pytest.raises(Exception, match="no model"):
            client.infer("a-name-that-a-caller-made-up", [tensor("x", floats(1), "FP32")])
    with pytest.raises(Exception, match="shape"):
        client.infer("double", [tensor("x", floats(1, columns=5), "FP32")])

    async def burst() -> list[Any]:
        async with triton_aio.InferenceServerClient(counting.address) as asynchronous:
            calls = [asyncio.create_task(asynchronous.infer("slow", [steps(LONG)])) for _ in range(4)]
            await asyncio.to_thread(
                wait_for, lambda: Scrape(counting)("nv_inference_pending_request_count", model="slow")
            )
            return list(await asyncio.gather(*calls, return_exceptions=True))

    refused = sum(isinstance(answer, triton.InferenceServerException) for answer in asyncio.run(burst()))
    scrape = Scrape(counting)
    assert scrape("enginehouse_inference_refused_requests_total", code="NOT_FOUND") == 3
    assert scrape("nv_inference_request_failure", model="double", reason="OTHER") == 1
    assert refused and scrape("nv_inference_request_failure", model="slow", reason="REJECTED") == refused
    assert {s.labels["model"] for s in scrape.samples if "model" in s.labels} == {"double", "slow"}


def test_a_worker_that_dies_is_counted_and_requests_say_why_they_failed(counting: Server) -> None:
    with triton.InferenceServerClient(counting.address) as client:
        worker: psutil.Process = counting.workers()[0]
        worker.kill()
        messages: list[str] = []

        def answered() -> bool:
            try:
                client.infer("double", [tensor("x", floats(1), "FP32")])
            except triton.InferenceServerException as error:
                assert error.status() == "StatusCode.UNAVAILABLE"
                messages.append(error.message())
                return False
            return counting.workers()[0].pid != worker.pid

        wait_for(answered)
    assert messages and not [m for m in messages if m.rstrip().endswith(":")], messages
    assert Scrape(counting)("enginehouse_inference_worker_deaths_total", worker="onnxruntime@cpu") == 1


def test_metrics_can_be_off_and_a_taken_port_is_told(start_server: Callable[..., Server]) -> None:
    assert "metrics_port" not in start_server("off", metrics_port="off").ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "enginehouse_inference"],
            env={**os.environ, "ENGINEHOUSE_PORT": "0", "ENGINEHOUSE_METRICS_PORT": port},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 1
    assert f"cannot serve metrics on 127.0.0.1:{port}" in ended.stderr and "ENGINEHOUSE_METRICS_PORT" in ended.stderr
