"""The desired state, followed: fetched by digest, replaced without gaps, kept when the optimizer is away."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference_world import Server, floats, load, tensor, wait_for
from optimizer_double import OptimizerDouble
from tritonclient.utils import InferenceServerException

StartServer = Callable[..., Server]


@pytest.fixture
def optimizer() -> Iterator[OptimizerDouble]:
    double = OptimizerDouble()
    double.start()
    yield double
    double.stop()


def factor(client: Any, model: str, version: str = "") -> float:
    """What the model multiplies by: 2 for double, 3 for triple."""
    sent = floats(2, start=1)
    received = client.infer(model, [tensor("x", sent, "FP32")], model_version=version).as_numpy("y")
    (result,) = np.unique(received / sent)
    return float(result)


def states(client: Any) -> dict[tuple[str, str], tuple[str, str]]:
    return {(m.name, m.version): (m.state, m.reason) for m in client.get_model_repository_index().models}


def test_what_is_desired_is_served_when_the_server_is_ready(
    start_server: StartServer, optimizer: OptimizerDouble, models: Path
) -> None:
    double = optimizer.publish("double-1", models / "double")
    alien = optimizer.publish("alien-1", models / "alien")
    optimizer.configure("pair", {1: double}, instances=2)
    optimizer.configure("strange", {1: alien})
    optimizer.configure("lost", {1: "projects/default/engines/never-built"})
    client = (server := start_server(optimizer=optimizer.address)).client()
    # Ready means that each has been tried, and one that fails does not keep the others.
    assert client.is_server_ready()
    assert factor(client, "pair") == 2
    assert client.get_model_config("pair").config.instance_group[0].count == 2
    seen = states(client)
    assert seen["pair", "1"] == ("READY", "")
    assert seen["strange", "1"][0] == "UNAVAILABLE" and "abacus" in seen["strange", "1"][1]
    assert seen["lost", "1"][0] == "UNAVAILABLE" and "never-built" in seen["lost", "1"][1]
    assert not client.is_model_ready("strange")
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="pair")).status == 1
        assert health.Check(health_pb2.HealthCheckRequest(service="strange")).status != 1


def test_a_new_version_replaces_the_old_without_a_gap(
    start_server: StartServer, optimizer: OptimizerDouble, models: Path
) -> None:
    double, triple = (optimizer.publish(f"{m}-1", models / m) for m in ("double", "triple"))
    optimizer.configure("m", {1: double})
    client = (server := start_server(optimizer=optimizer.address)).client()
    seen: list[float] = []
    failures: list[Exception] = []
    done = threading.Event()

    def keep_asking() -> None:
        own = server.client()
        while not done.is_set():
            try:
                seen.append(factor(own, "m"))
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    wait_for(lambda: seen)
    optimizer.configure("m", {1: double, 2: triple})
    wait_for(lambda: seen[-1] == 3)
    # The same version with other instances is loaded beside the old one, too.
    optimizer.configure("m", {2: triple}, instances=2)
    wait_for(lambda: client.get_model_config("m").config.instance_group[0].count == 2)
    done.set()
    thread.join()
    assert not failures
    assert seen == sorted(seen), "an old version answered after the new one"
    wait_for(lambda: states(client).keys() == {("m", "2")})
    with pytest.raises(InferenceServerException, match="no version 1"):
        factor(client, "m", "1")
    # Both are wanted.
    optimizer.configure("m", {1: double, 2: triple}, latest_versions=2)
    wait_for(lambda: client.is_server_ready() and states(client).get(("m", "1")) == ("READY", ""))
    assert (factor(client, "m", "1"), factor(client, "m", "2"), factor(client, "m")) == (2, 3, 3)
    assert list(client.get_model_metadata("m").versions) == ["1", "2"]
    optimizer.remove("m")
    wait_for(lambda: not states(client))
    wait_for(lambda: not list((server.cache / "engines").glob("*/*")))


def test_a_version_that_fails_leaves_the_old_one(
    start_server: StartServer, optimizer: OptimizerDouble, models: Path
) -> None:
    optimizer.configure("m", {1: optimizer.publish("double-1", models / "double")})
    client = start_server(optimizer=optimizer.address).client()
    optimizer.configure("m", {2: optimizer.publish("broken-1", models / "broken")})
    wait_for(lambda: states(client).get(("m", "2"), ("", ""))[0] == "UNAVAILABLE")
    assert factor(client, "m") == 2
    optimizer.configure("m", {3: optimizer.publish("triple-1", models / "triple")})
    wait_for(lambda: states(client).keys() == {("m", "3")})
    assert factor(client, "m") == 3


def test_the_last_state_is_served_while_the_optimizer_is_away(
    start_server: StartServer, optimizer: OptimizerDouble, models: Path
) -> None:
    optimizer.configure("m", {1: optimizer.publish("double-1", models / "double")})
    first = start_server(optimizer=optimizer.address)
    assert factor(first.client(), "m") == 2
    optimizer.stop()
    assert factor(first.client(), "m") == 2
    assert first.stop() == 0
    optimizer.reads.clear()
    again = start_server(optimizer=optimizer.address, startup_wait_seconds="0.2")
    client = again.client()
    assert factor(client, "m") == 2
    # And it hears when the optimizer is back.
    optimizer.configure("m", {2: optimizer.publish("triple-1", models / "triple")})
    optimizer.start()
    wait_for(lambda: states(client).keys() == {("m", "2")})
    assert factor(client, "m") == 3
    digests = {digest for digest, _ in optimizer.reads}
    assert optimizer.digest("projects/default/engines/double-1", "model.onnx") not in digests, "it was in the cache"


def test_damaged_bytes_are_never_served(start_server: StartServer, optimizer: OptimizerDouble, models: Path) -> None:
    engine = optimizer.publish("double-1", models / "double")
    digest = optimizer.digest(engine, "model.onnx")
    optimizer.damage.add(digest)
    optimizer.configure("m", {1: engine})
    server = start_server(optimizer=optimizer.address)
    client = server.client()
    assert states(client)["m", "1"][0] == "UNAVAILABLE"
    assert not list((server.cache / "engines").glob("*/*"))
    optimizer.damage.clear()
    client.load_model("m")
    assert factor(client, "m") == 2
    # What rots on the disk is fetched again by the next process.
    assert server.stop() == 0
    blob = next((server.cache / "blobs" / "sha256").glob(f"*/{digest.removeprefix('sha256:')}"))
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"rot")
    optimizer.reads.clear()
    assert factor(start_server(optimizer=optimizer.address).client(), "m") == 2
    assert digest in {d for d, _ in optimizer.reads}


def test_an_interrupted_download_resumes(start_server: StartServer, optimizer: OptimizerDouble, models: Path) -> None:
    engine = optimizer.publish("double-1", models / "double")
    digest = optimizer.digest(engine, "model.onnx")
    optimizer.configure("m", {1: engine})
    server = start_server(optimizer=optimizer.address)
    assert server.stop() == 0
    # As a process that was killed half-way leaves it.
    shutil.rmtree(server.cache / "engines")
    blob = next((server.cache / "blobs" / "sha256").glob(f"*/{digest.removeprefix('sha256:')}"))
    partial = server.cache / "blobs" / "partial" / blob.name
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(blob.read_bytes()[:50])
    blob.unlink()
    optimizer.reads.clear()
    assert factor(start_server(optimizer=optimizer.address).client(), "m") == 2
    assert (digest, 50) in optimizer.reads


def test_by_hand_holds_until_the_configuration_changes(
    start_server: StartServer, optimizer: OptimizerDouble, models: Path
) -> None:
    double = optimizer.publish("double-1", models / "double")
    optimizer.configure("m", {1: double})
    client = start_server(optimizer=optimizer.address).client()
    client.unload_model("m")
    assert states(client)["m", ""] == ("UNAVAILABLE", "unloaded in this process by a client")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        factor(client, "m")
    client.load_model("m")
    assert factor(client, "m") == 2
    load(client, models, "triple", "m")
    assert factor(client, "m") == 3
    optimizer.configure("m", {1: double}, instances=2)
    wait_for(lambda: client.get_model_config("m").config.instance_group[0].count == 2)
    assert factor(client, "m") == 2


def test_engine_directories_can_be_limited(start_server: StartServer, models: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    shutil.copytree(models / "double", allowed / "double")
    client = start_server(load_directories=f'["{allowed}"]').client()
    load(client, allowed, "double")
    with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
        load(client, models, "triple")
    (allowed / "link").symlink_to(models / "triple")
    with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
        load(client, allowed, "link")
    with pytest.raises(InferenceServerException, match="absolute"):
        load(client, Path("models"), "double")


def test_a_batching_change_needs_no_load(start_server: StartServer, optimizer: OptimizerDouble, models: Path) -> None:
    double = optimizer.publish("double-1", models / "double")
    optimizer.configure("m", {1: double})
    server = start_server(optimizer=optimizer.address)
    client = server.client()
    optimizer.configure("m", {1: double}, batching={"preferred_batch_sizes": [2, 4]})

    def preferred() -> list[int]:
        return list(client.get_model_config("m").config.dynamic_batching.preferred_batch_size)

    wait_for(lambda: preferred() == [2, 4])
    assert factor(client, "m") == 2
    assert server.log().count('"event": "serving"') == 1
