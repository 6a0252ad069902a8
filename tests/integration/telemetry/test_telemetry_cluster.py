"""A cluster on this machine: two agents over the fake NVML library, the aggregator, the SDK and `telemetry top`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from telemetry_world import PATIENCE, Agent, Control, eventually, running

from enginehouse.client import Client, ClusterNode


@contextlib.contextmanager
def aggregating(folder: Path, *agents: Agent) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    announced = folder / "aggregator.json"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINEHOUSE_")}
    settings = {
        "AGENTS": ",".join(f"localhost:{agent.ports['port']}" for agent in agents),
        "PORT": "0",
        "METRICS_PORT": "0",
        "INTERVAL_SECONDS": "0.2",
        "LATE_SECONDS": "1",
        "LOST_SECONDS": "2",
        "ANNOUNCE_FILE": str(announced),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "enginehouse_telemetry.aggregator"],
        env={**kept, **{f"ENGINEHOUSE_{name}": value for name, value in settings.items()}},
    )
    try:
        eventually(lambda: announced.exists() or process.poll() is not None, "starting")
        assert process.poll() is None
        yield process, json.loads(announced.read_text())
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def agents(tmp_path: Path, libraries: Path, control: Control) -> Iterator[list[Agent]]:
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("gpu-1", "gpu-2"):
            folder = tmp_path / name
            folder.mkdir()
            found.append(stack.enter_context(running(folder, libraries, control.path, NODE_NAME=name)))
        yield found


def test_a_cluster_of_two_nodes(tmp_path: Path, agents: list[Agent]) -> None:
    with aggregating(tmp_path, *agents) as (process, ports):
        address = f"127.0.0.1:{ports['port']}"
        with Client(telemetry=address) as client:

            def live() -> list[ClusterNode] | None:
                found = client.telemetry.cluster(products=["*H200*"], fields=["time", "gpus.product"])
                return found if [node.state for node in found] == ["live", "live"] else None

            nodes = eventually(live, "two live nodes")
            assert sorted(node.id for node in nodes) == ["gpu-1", "gpu-2"]
            assert all([gpu.product for gpu in node.sample.gpus] == ["NVIDIA H200"] for node in nodes)

            enginehouse = str(Path(sys.executable).with_name("enginehouse"))
            shown = subprocess.run(
                [enginehouse, "--telemetry", address, "telemetry", "top", "--once"],
                capture_output=True, text=True, timeout=PATIENCE, check=True,
            ).stdout  # fmt: skip
            assert "nodes 2 live" in shown and "GPUs 4 (0 held by pods)" in shown

            stream = client.telemetry.stream_cluster(interval=0.2, nodes=["gpu-2"], fields=["sequence"])
            assert [node.id for node in next(stream)] == ["gpu-2"]
            agents[1].process.kill()
            states: list[str] = []
            while "lost" not in states:
                states += [node.state for node in next(stream)]
            assert "late" in states and set(states) <= {"live", "late", "lost"}
            stream.close()

            with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics_port']}/metrics", timeout=PATIENCE) as page:
                metrics = page.read().decode()
            assert 'enginehouse_cluster_nodes{state="lost"} 1.0' in metrics
            assert 'enginehouse_cluster_gpus{product="NVIDIA H200",state="ok"} 1.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_settings_that_are_refused() -> None:
    variables = {**os.environ, "ENGINEHOUSE_AGENTS": "a:1", "ENGINEHOUSE_AGENTS_SERVICE": "ns/name:1"}
    refused = subprocess.run(
        [sys.executable, "-m", "enginehouse_telemetry.aggregator"],
        env=variables, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "set ENGINEHOUSE_AGENTS or ENGINEHOUSE_AGENTS_SERVICE, and not both" in refused.stderr
