"""`enginehouse tune` against a real optimizer and a real inference process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_bundles import folder_files, manifest_of, write_bundle
from inference_world import Server, wait_for
from optimizer_process import OptimizerProcess

from enginehouse import Client
from enginehouse.artifacts import digest_bytes
from enginehouse.client.values import Batching
from enginehouse.errors import NotFoundError

StartServer = Callable[..., Server]
# Quick: one number of requests in flight, short windows. The machine decides what is fastest, so tests do not.
QUICK = ("--concurrency", "2", "--window", "0.05s", "--budget", "60s", "--instances", "1", "--delay-ms", "0")


class World(NamedTuple):
    client: Client
    server: Server
    variables: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        program = "from enginehouse.cli.entry import main; main()"
        command = [sys.executable, "-c", program, "tune", "m", *arguments]
        return subprocess.Popen(command, env=self.variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def tune(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def served(self) -> set[str]:
        return {config.id for config in self.client.serving.list()}

    def gone(self) -> bool:
        """Whether nothing of a tuning is left, in the optimizer or in the process."""
        names = self.served() | {entry.name for entry in self.client.model_index()}
        return "m-tuning" not in names


@pytest.fixture(scope="module")
def world(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tune")
    optimizer = OptimizerProcess(folder / "optimizer")
    port = json.loads((optimizer.root / "announce.json").read_text())["port"]
    server = Server(folder / "server", optimizer=f"127.0.0.1:{port}")
    variables = {
        **os.environ,
        "ENGINEHOUSE_OPTIMIZER": f"127.0.0.1:{port}",
        "ENGINEHOUSE_INFERENCE": server.address,
        "ENGINEHOUSE_HOME": str(folder),
    }
    with Client(f"127.0.0.1:{port}", server.address) as client:
        publish(client, models / "double", folder, "FP32", {"data": "d", "samples": 10, "top1_agreement": 1.0})
        publish(client, models / "double", folder, "FP16", {"data": "d", "samples": 10, "top1_agreement": 0.995})
        publish(client, models / "triple", folder, "INT8", {"data": "d", "samples": 10, "top1_agreement": 0.5})
        yield World(client, server, variables)
    server.kill()
    assert optimizer.stop() == 0


def publish(client: Client, model: Path, folder: Path, precision: str, verification: dict[str, Any]) -> None:
    """Publish an engine's directory as one of a precision, with what verification is to have measured."""
    files = folder_files(model)
    files["engine.json"] = json.dumps({**json.loads(files["engine.json"]), "precision": precision}).encode()
    manifest = dataclasses.replace(manifest_of(files), verification=verification)
    bundle = write_bundle(folder / f"{precision}.engine", manifest, {digest_bytes(d): d for d in files.values()})
    client.engines.import_file(bundle)


def test_it_says_what_it_would_try_and_serves_nothing(world: World) -> None:
    status, out, err = world.tune("--min-accuracy", "0.99", "--dry-run")
    assert status == 0, err
    assert "top-1 agreement with FP32 0.5 is below 0.99" in out
    # Batches 1, 2, 4, 8 of two engines, with six delays but for batch 1, and three numbers of instances.
    assert f"{2 * (3 * 6 + 1) * 3} configurations" in err
    assert world.served() == set()


def test_it_finds_a_configuration_and_leaves_the_service_as_it_was(world: World, tmp_path: Path) -> None:
    client = world.client
    engines = {engine.precision: engine for engine in client.engines.list(model="m")}
    kept = Batching(max_queue_size=77, response_cache_bytes=1 << 20)
    before = client.load("m", engines["int8"], options={"intra_op_threads": 1}, batching=kept)
    output = tmp_path / "out" / "m.json"
    status, out, err = world.tune(
        "--min-accuracy", "0.99", "--latency-p99", "5s", *QUICK, "--max-batch", "8", "--output", str(output), "--json"
    )
    assert status == 0, err
    assert client.serving.get("m") == before, "nothing is applied that nobody asked for"
    assert world.gone()
    found = json.loads(out)
    configuration = found["configuration"]
    (version,) = configuration["versions"]
    assert version["engine"] in {engines["fp32"].name, engines["fp16"].name} and version["version"] == "2"
    assert configuration["options"] == {"intra_op_threads": "1"}
    assert configuration["batching"]["maxQueueSize"] == 77
    assert configuration["batching"]["responseCacheBytes"] == str(1 << 20)
    assert configuration == json.loads(output.read_text())
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert rows == found["rows"]
    assert {row["precision"] for row in rows} == {"fp32", "fp16"}
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["confirmation"] and chosen["failed"] == 0 and chosen["requests"] > 0 and chosen["verdict"] == "does"
    # All requests reached the process and were computed: no answer came from a cache.
    best = max(row["inferences_per_second"] for row in rows if row["confirmation"])
    assert chosen["inferences_per_second"] == best
    table = output.with_suffix(".md").read_text()
    assert "refused: top-1 agreement" in table and "| best; second look |" in table and "enginehouse load m " in table


def test_it_applies_what_it_found_when_told_to(world: World) -> None:
    # Few requests a second: whatever this machine does meanwhile, they are answered.
    rate = ("--rate", "20", "--objective", "latency", "--latency-p99", "5s")
    status, out, err = world.tune(*QUICK, *rate, "--precision", "fp32", "--max-batch", "4", "--apply")
    assert status == 0, err
    assert "20/s offered" in out
    assert "is served" in err and "fp32" in out
    config = world.client.serving.get("m")
    assert config.newest is not None and "-fp32-" in config.newest.engine
    assert (config.instances, config.batching.max_batch_size) == (1, 4)
    assert config.batching.max_queue_size == 77, "what is not searched stays"
    assert world.client.model_ready("m", config.newest.version) and world.gone()


def test_what_cannot_be_is_said(world: World) -> None:
    before = world.client.serving.get("m")
    status, out, err = world.tune(*QUICK, "--precision", "fp32", "--max-batch", "8", "--latency-p99", "1us")
    assert status == 1 and "no configuration does" in err
    assert "is above 0.001 ms" in out
    status, _, err = world.tune(*QUICK, "--min-accuracy", "1.0", "--precision", "int8")
    assert status != 0 and "no engine of m is accurate enough" in err
    status, _, err = world.tune(*QUICK, "--latency-p99", "soon")
    assert status != 0 and "--latency-p99 'soon'" in err
    assert world.client.serving.get("m") == before and world.gone()


def test_ctrl_c_takes_away_what_was_served_for_the_search(world: World) -> None:
    before = world.client.serving.get("m")
    process = world.start("--budget", "5m", "--window", "1s")
    wait_for(lambda: "m-tuning" in world.served() or process.poll() is not None)
    status, _, err = world.tune(*QUICK)
    assert status != 0 and "served already" in err, "a second one would disturb the first"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    wait_for(world.gone)
    assert world.client.serving.get("m") == before
    with pytest.raises(NotFoundError):
        world.client.serving.get("m-tuning")
