"""The service as a process: its calls, its metrics, its end."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from telemetry_world import PATIENCE, Agent, Control, environment, eventually, running

from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError, UnavailableError
from enginehouse.rpc.status import from_rpc_error
from enginehouse.telemetry.columns import PAPER_QUERY
from enginehouse.telemetry.smi import parse_query, row_lines
from enginehouse.v1 import telemetry_pb2 as pb

PARENT = "projects/default/nodes/node-1"


def stream(agent: Agent, milliseconds: int, *devices: str, paths: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    request = pb.StreamSamplesRequest(parent=PARENT, devices=devices)
    request.period.FromMilliseconds(milliseconds)
    request.read_mask.paths.extend(paths)
    return agent.stub.StreamSamples(request)


def refused(call) -> EnginehouseError:  # type: ignore[no-untyped-def]
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def test_a_stream_sets_the_pace_and_gives_it_back(tmp_path: Path, libraries: Path, control: Control) -> None:
    with running(tmp_path, libraries, control.path, SAMPLE_PERIOD_SECONDS="60") as agent:
        samples = stream(agent, 100, "GPU-bbbb", paths=("sequence", "gpus.index"))
        taken = [next(samples).sample for _ in range(5)]
        assert [b.sequence - a.sequence for a, b in itertools.pairwise(taken)] == [1] * 4
        assert all([gpu.index for gpu in sample.gpus] == [1] for sample in taken)
        assert "sample_period_seconds 0.1" in agent.metrics()
        samples.cancel()
        eventually(lambda: "sample_period_seconds 60.0" in agent.metrics(), "the configured period")


def test_streams_of_several_periods(steady: Agent) -> None:
    fast, slow = stream(steady, 100), stream(steady, 500)
    quick = [next(fast).sample.sequence for _ in range(3)]
    paced = [next(slow).sample for _ in range(3)]
    fast.cancel()
    slow.cancel()
    assert [quick[1] - quick[0], quick[2] - quick[1]] == [1, 1]
    assert all(before.sequence < after.sequence for before, after in itertools.pairwise(paced))


def test_past_samples_page_by_page(steady: Agent) -> None:
    newest = steady.when(lambda sample: sample.sequence >= 6, "six samples")
    request = pb.ListSamplesRequest(parent="projects/default", page_size=2, end_time=newest.time, devices=["1"])
    request.read_mask.paths.extend(["sequence", "gpus.uuid"])
    found = []
    while True:
        page = steady.stub.ListSamples(request, timeout=PATIENCE)
        assert len(page.samples) <= 2
        found += page.samples
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert [sample.sequence for sample in found] == list(range(1, newest.sequence))
    assert all([gpu.uuid for gpu in sample.gpus] == ["GPU-bbbb"] for sample in found)


def test_refusals(steady: Agent) -> None:
    bad_mask = refused(lambda: steady.snapshot("gpus.power_draw"))
    assert isinstance(bad_mask, InvalidArgumentError) and "gpus.power_draw_watts" in bad_mask.message
    for milliseconds in (99, 60_001):
        assert isinstance(refused(lambda ms=milliseconds: next(stream(steady, ms))), InvalidArgumentError)
    assert isinstance(refused(lambda: next(stream(steady, 100, "GPU-cccc"))), NotFoundError)
    forged = pb.ListSamplesRequest(parent=PARENT, page_token="AAAA")
    assert isinstance(refused(lambda: steady.stub.ListSamples(forged)), InvalidArgumentError)
    elsewhere = pb.ListDevicesRequest(parent="projects/default/nodes/other")
    assert isinstance(refused(lambda: steady.stub.ListDevices(elsewhere)), NotFoundError)


def test_csv_of_a_live_sample(steady: Agent) -> None:
    hopper, turing = row_lines(parse_query(PAPER_QUERY), steady.snapshot(), steady.devices().devices)
    assert hopper.split(", ", 1)[1] == "0, P0, 45 %, 20 %, 143771 MiB, 142235 MiB, 1024 MiB, 70.12 W, 34, 5, 5"
    assert turing.split(", ", 1)[1] == "1, [N/A], 0 %, 0 %, 15360 MiB, 15360 MiB, 0 MiB, [N/A], 60, [N/A], [N/A]"


def test_metrics_have_dcgms_names(steady: Agent) -> None:
    text = steady.metrics()
    for line in (
        'DCGM_FI_DEV_GPU_UTIL{DCGM_FI_DRIVER_VERSION="550.54.15",Hostname="node-1",UUID="GPU-aaaa",device="nvidia0",'
        'gpu="0",modelName="NVIDIA H200",pci_bus_id="00000000:3B:00.0"} 45.0',
        "enginehouse_telemetry_missed_samples_total ",
    ):
        assert line in text


def test_health_and_a_clean_end_with_a_stream_open(agent: Agent) -> None:
    health = health_pb2_grpc.HealthStub(agent.channel)
    status = health.Check(health_pb2.HealthCheckRequest(service="enginehouse.v1.Telemetry"), timeout=PATIENCE)
    assert status.status == health_pb2.HealthCheckResponse.SERVING
    samples = stream(agent, 60_000)
    next(samples)  # the next is a minute away: the end must not wait for it
    assert agent.stop() == 0
    assert isinstance(refused(lambda: next(samples)), UnavailableError)
    events = [json.loads(line)["event"] for line in agent.log.read_text().splitlines()]
    assert events[-1] == "stopped" and "ready" in events


def test_metrics_can_be_off_and_a_taken_port_is_explained(tmp_path: Path, libraries: Path, control: Control) -> None:
    with running(tmp_path, libraries, control.path, METRICS_PORT="off") as agent:
        assert "metrics_port" not in agent.ports
        assert agent.ports["pid"] == agent.process.pid
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        settings = environment(libraries, control.path, PORT="0", METRICS_PORT=port)
        ended = subprocess.run(
            [sys.executable, "-m", "enginehouse_telemetry"], env=settings, capture_output=True, timeout=PATIENCE
        )
    assert ended.returncode == 1 and b"ENGINEHOUSE_METRICS_PORT" in ended.stderr


def test_the_collector_alone_needs_neither_grpc_nor_pydantic(tmp_path: Path, libraries: Path, control: Control) -> None:
    out = tmp_path / "samples.jsonl"
    program = (
        "import sys\n"
        "for name in ('grpc', 'google', 'pydantic', 'structlog', 'prometheus_client', 'enginehouse'):\n"
        "    sys.modules[name] = None\n"
        "from enginehouse_telemetry.collect import main\n"
        f"sys.exit(main(['--seconds', '0.5', '--period', '0.1', '--out', {str(out)!r}]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(libraries, control.path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    samples = [json.loads(line) for line in out.read_text().splitlines()]
    assert [sample["sequence"] for sample in samples] == list(range(1, len(samples) + 1))
    assert samples[-1]["gpus"][0]["power_draw_watts"] == 70.123
    assert "utilization" in ended.stderr and "NVIDIA H200" in ended.stderr
