"""NVIDIA's own load generator, unmodified, against a real server: that it takes us for what it knows.

It fails on a failed request, and on a server whose counts it cannot read.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from collector import collecting
from inference_world import Server, load
from perf_analyzer import NotHadError, PerfAnalyzer, find

pytestmark = pytest.mark.slow

IDENTITY = ("-m", "identity", "--shape", "x:1000")
SHARED = ("--shared-memory", "system", "--output-shared-memory-size", str(16 * 4000))


@dataclass(frozen=True)
class Load:
    """What perf_analyzer is told, and the rows of each of its requests."""

    arguments: tuple[str, ...]
    model: str = "identity"
    rows: int = 1


LOADS = {
    "concurrency": Load(("-m", "double", "--concurrency-range", "4"), "double"),
    "asynchronous": Load(("-m", "double", "--async", "--concurrency-range", "8"), "double"),
    "request rate": Load(("-m", "double", "--request-rate-range", "100"), "double"),
    "poisson": Load(
        ("-m", "double", "--async", "--request-rate-range", "100", "--request-distribution", "poisson"), "double"
    ),
    "batches of random rows": Load((*IDENTITY, "-b", "16", "--input-data", "random"), rows=16),
    "zeros": Load(("-m", "addsub", "-b", "4", "--input-data", "zero"), "addsub", 4),
    "text": Load(("-m", "text", "-b", "2", "--string-length", "24"), "text", 2),
    "half precision": Load(("-m", "half"), "half"),
    "shared memory": Load((*IDENTITY, "-b", "16", *SHARED), rows=16),
    "shared memory, asynchronous": Load(
        (*IDENTITY, "-b", "16", "--async", "--concurrency-range", "4", *SHARED), rows=16
    ),
    "stream": Load(("-m", "double", "--streaming", "--concurrency-range", "4"), "double"),
    "stream with shared memory": Load((*IDENTITY, "-b", "16", "--streaming", *SHARED), rows=16),
    "gzip": Load((*IDENTITY, "--grpc-compression-algorithm", "gzip")),
    "a version": Load(("-m", "double", "-x", "1"), "double"),
    "traces off": Load(("-m", "double", "--trace-level", "OFF"), "double"),
}


@pytest.fixture(scope="module")
def perf_analyzer() -> PerfAnalyzer:
    """Kept beside the packages of this environment, so that it is fetched once."""
    folder = Path(sys.prefix) / "perf-analyzer"
    folder.mkdir(exist_ok=True)
    try:
        return find(folder)
    except NotHadError as error:
        pytest.skip(f"no perf_analyzer: {error}")


@pytest.mark.parametrize("told", LOADS.values(), ids=LOADS.keys())
def test_it_measures_us(
    told: Load,
    server: Server,
    client: Any,
    perf_analyzer: PerfAnalyzer,
    tmp_path: Path,
) -> None:
    def counts() -> tuple[int, int, int]:
        (model,) = client.get_inference_statistics(told.model).model_stats
        return model.inference_count, model.inference_stats.success.count, model.inference_stats.fail.count

    report = tmp_path / "report.csv"
    before = counts()
    # A number of requests and no stable throughput: this asks whether it works, not how fast.
    printed = perf_analyzer.run(
        *("-u", server.address, "-i", "grpc", "-f", str(report), "--request-count", "100", *told.arguments)
    )
    rows, answered, failed = (now - then for now, then in zip(counts(), before, strict=True))
    measured = list(csv.DictReader(report.read_text().splitlines()))
    assert answered >= 100 * len(measured) > 0, printed
    assert rows == told.rows * answered and failed == 0, printed
    # Its columns of the server's times come from ModelStatistics.
    assert all(float(line["Server Compute Infer"]) > 0 for line in measured), measured


def test_it_reads_our_metrics(server: Server, perf_analyzer: PerfAnalyzer) -> None:
    url = f"http://127.0.0.1:{server.ports['metrics_port']}/metrics"
    perf_analyzer.run(
        *("-u", server.address, "-i", "grpc", "-m", "double", "--request-count", "50"),
        *("--collect-metrics", "--metrics-url", url),
    )


def test_it_turns_traces_on(
    start_server: Callable[..., Server], models: Path, perf_analyzer: PerfAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        server = start_server(tracing="otlp")
        with server.client() as client:
            load(client, models, "double")
        perf_analyzer.run(
            *("-u", server.address, "-i", "grpc", "-m", "double", "--request-count", "100"),
            *("--trace-level", "TIMESTAMPS", "--trace-rate", "10"),
        )
        assert server.stop() == 0
    assert len(collector.named("compute_infer")) >= 10


def test_it_is_told_what_is_wrong(server: Server, perf_analyzer: PerfAnalyzer) -> None:
    with pytest.raises(AssertionError, match="no model 'nothing': this server has"):
        perf_analyzer.run("-u", server.address, "-i", "grpc", "-m", "nothing")
    with pytest.raises(AssertionError, match="ENGINEHOUSE_TRACING=otlp"):
        perf_analyzer.run("-u", server.address, "-i", "grpc", "-m", "double", "--trace-level", "TIMESTAMPS")


def test_its_clients_spread_over_fronts(
    start_server: Callable[..., Server], models: Path, perf_analyzer: PerfAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its clients needs a connection of its own for that, which its gRPC client library gives when told."""
    server = start_server(fronts="2")
    with server.client() as client:
        load(client, models, "double")

    def connections(share: str) -> int:
        monkeypatch.setenv("TRITON_CLIENT_GRPC_CHANNEL_MAX_SHARE_COUNT", share)
        arguments = ("-u", server.address, "-i", "grpc", "-m", "double", "--concurrency-range", "12")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(perf_analyzer.run, *arguments, "--request-count", "3000")
            most = 0
            while not running.done():
                peers = [c.raddr for f in server.fronts() for c in f.net_connections(kind="tcp") if c.raddr]
                most = max(most, len(peers))
            running.result()
        return most

    assert connections("1") >= 12 > connections("6") > 0
