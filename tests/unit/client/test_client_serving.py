"""Loading, unloading, inference, telemetry."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from client_servers import PROJECT, Servers

from enginehouse import (
    TLS,
    AsyncClient,
    Batching,
    GpuAllocation,
    GpuDevice,
    GpuProcess,
    GpuSample,
    HostSample,
    MigInstance,
    ServedVersion,
    ServingConfig,
)
from enginehouse.client import serving
from enginehouse.client.serving import Edit, edited
from enginehouse.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from enginehouse.v1 import telemetry_pb2

BASE = ServingConfig(f"{PROJECT}/servingConfigs/m", (ServedVersion(3, "e"),), instances=2, etag="x")


def test_loading_the_same_again_changes_nothing() -> None:
    assert edited(BASE, Edit("e")) == (BASE, 3)
    assert edited(BASE, Edit("e", instances=2)) == (BASE, 3)


def test_any_change_makes_the_next_version() -> None:
    wanted, version = edited(BASE, Edit("e", instances=4))
    assert version == 4 and wanted.instances == 4 and wanted.versions == (ServedVersion(3, "e"), ServedVersion(4, "e"))
    assert edited(BASE, Edit("f"))[1] == 4
    assert edited(ServingConfig("n"), Edit("f"))[1] == 1


def test_only_the_latest_versions_are_remembered() -> None:
    config = ServingConfig("n")
    for place in range(40):
        config, version = edited(config, Edit(f"e{place}"))
    assert version == 40 and [v.version for v in config.versions] == list(range(25, 41))
    many, _ = edited(config, Edit("next", latest_versions=16))
    assert len(many.versions) == 17


def test_a_version_keeps_its_engine() -> None:
    with pytest.raises(InvalidArgumentError, match="is e: take another version"):
        edited(BASE, Edit("f", version=3))
    assert edited(BASE, Edit("f", version=1))[0].versions == (ServedVersion(1, "f"), ServedVersion(3, "e"))
    assert edited(BASE, Edit("e", version=3, batching=Batching(8)))[0].batching == Batching(8)


def test_served_versions_are_the_highest() -> None:
    config = ServingConfig("n", tuple(ServedVersion(v, "e") for v in (3, 1, 2)), latest_versions=2)
    assert [v.version for v in config.served] == [2, 3]


async def test_load_waits_until_the_version_is_ready(client: AsyncClient, servers: Servers) -> None:
    batching = Batching(8, 0.002, (4, 8), queue_timeout_seconds=0.5)
    config = await client.load("double", "engine-1", batching=batching, options={"threads": 2, "graph": True})
    assert config.versions == (ServedVersion(1, f"{PROJECT}/engines/engine-1"),)
    assert config.batching == batching and config.options == {"threads": "2", "graph": "true"}
    assert await client.serving.get("double") == config
    assert await client.load("double", "engine-1") == config
    assert servers.serving.updates == 1


async def test_load_is_repeated_on_what_another_edit_left(client: AsyncClient, servers: Servers) -> None:
    servers.serving.races = 2
    config = await client.load("double", "engine-1")
    assert [v.version for v in config.versions] == [7, 8]


async def test_a_load_failure_says_why(client: AsyncClient, servers: Servers) -> None:
    servers.inference.broken[("double", "1")] = "built for another GPU"
    with pytest.raises(FailedPreconditionError, match="built for another GPU"):
        await client.load("double", "engine-1")


async def test_load_gives_up_at_its_timeout(client: AsyncClient, servers: Servers) -> None:
    servers.inference.broken[("double", "1")] = ""
    with pytest.raises(DeadlineExceededError, match="not ready after"):
        await client.load("double", "engine-1", timeout=0.1)


async def test_unload(client: AsyncClient) -> None:
    await client.load("double", "engine-1")
    await client.unload("double")
    assert not await client.model_ready("double")
    with pytest.raises(NotFoundError):
        await client.unload("double")


async def test_infer_takes_an_array_a_mapping_or_a_list(client: AsyncClient, servers: Servers) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = await client.infer("double", x, request_id="r1")
    np.testing.assert_array_equal(result["y"], 2 * x)
    assert (result.request_id, result.model_version, dict(result.parameters)) == ("r1", "1", {"cached": False})
    assert list((await client.infer("double", {"x": x})).only()[1]) == [6.0, 8.0, 10.0]
    assert (await client.infer("double", [[1, 2, 3]])).only().tolist() == [[2, 4, 6]]
    assert (await client.infer("double", x.astype(np.uint8))).only().dtype == np.float32
    assert servers.inference.metadata_calls == 1


async def test_infer_refuses_what_does_not_fit(client: AsyncClient) -> None:
    x = np.zeros((2, 3))
    with pytest.raises(InvalidArgumentError, match=r"astype\(np.float32\)"):
        await client.infer("double", x)
    assert (await client.infer("double", x, casting="same_kind")).only().shape == (2, 3)
    with pytest.raises(InvalidArgumentError, match="add the batch dimension"):
        await client.infer("double", np.zeros(3, np.float32))
    with pytest.raises(InvalidArgumentError, match="no input 'z': expected x"):
        await client.infer("double", {"z": x})
    with pytest.raises(NotFoundError):
        await client.infer("triple", x)


async def test_a_changed_signature_is_asked_for_again(client: AsyncClient, servers: Servers) -> None:
    await client.infer("double", np.zeros((1, 3), np.float32))
    servers.inference.shape = [-1, 5]
    assert (await client.infer("double", np.zeros((1, 5), np.float32))).only().shape == (1, 5)


@pytest.mark.parametrize("reverse", [False, True])
async def test_streams_keep_the_order_of_requests(client: AsyncClient, servers: Servers, reverse: bool) -> None:
    servers.inference.reverse_stream = reverse
    requests = [np.full((1, 3), n, np.float32) for n in range(100)]
    results = [float(result["y"][0, 0]) async for result in client.infer_stream("double", requests)]
    assert results == [2.0 * n for n in range(100)]


async def test_a_stream_ends_with_what_its_requests_raised(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError, match="batch dimension"):
        async for _ in client.infer_stream("double", [np.zeros((1, 3), np.float32), np.zeros(3, np.float32)]):
            pass


async def test_metadata_and_readiness(client: AsyncClient) -> None:
    signature = await client.model_metadata("double")
    assert signature.inputs[0].shape == (-1, 3) and signature.inputs[0].dtype == "FP32"
    # These servers have no health service: only inference can say that it is ready.
    assert await client.ready(1) == {"optimizer": False, "inference": True, "telemetry": False}


async def test_nobody_at_the_address_is_said_with_the_address() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=5) as client:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1.*enginehouse up"):
            await client.models.list()


async def test_telemetry(client: AsyncClient, servers: Servers) -> None:
    sample = await client.telemetry.snapshot(fields=["gpus.power_draw_watts", "host"])
    assert list(servers.telemetry.requests[-1].read_mask.paths) == ["gpus.power_draw_watts", "host"]
    (gpu,) = sample.gpus
    assert (gpu.power_draw_watts, gpu.utilization_gpu_percent, gpu.power_limit_watts) == (120.5, 0.0, None)
    assert gpu.processes == (GpuProcess(7, "compute"),)
    assert sample.host is not None and sample.host.load_average_1m is None
    assert sample.time == datetime.fromtimestamp(1_700_000_009, timezone.utc)
    assert sample.to_proto() == servers.telemetry.sample(9)
    sequences = []
    async for sample in client.telemetry.stream(period=0.25, devices=[0]):
        sequences.append((sample.sequence, sample.skipped))
        if len(sequences) == 3:
            break
    assert sequences == [(1, 0), (2, 1), (3, 2)]
    assert servers.telemetry.requests[-1].period.ToMilliseconds() == 250
    history = await client.telemetry.history(datetime(2024, 1, 1, tzinfo=timezone.utc), limit=5)
    assert [s.sequence for s in history] == [0, 1, 2, 3, 4]
    devices = await client.telemetry.devices()
    assert len(devices) == 0 and devices.message == "NVML is not installed"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GpuDevice, telemetry_pb2.GpuDevice),
        (GpuSample, telemetry_pb2.GpuSample),
        (HostSample, telemetry_pb2.HostSample),
        (GpuProcess, telemetry_pb2.GpuProcess),
        (GpuAllocation, telemetry_pb2.GpuAllocation),
        (MigInstance, telemetry_pb2.MigInstance),
    ],
)
def test_values_have_every_field_of_their_messages(kind: type, message: type) -> None:
    assert {f.name for f in dataclasses.fields(kind)} == set(message.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


async def test_a_telemetry_stream_outlives_its_connection(client: AsyncClient, servers: Servers) -> None:
    servers.telemetry.break_after = 3
    stream = client.telemetry.stream()
    assert [(await anext(stream)).sequence for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    await stream.aclose()


async def test_an_agent_that_is_not_there_is_said_at_once() -> None:
    async with AsyncClient(telemetry="127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match="no server answers"):
            await anext(client.telemetry.stream())


async def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    async with AsyncClient(tls=TLS(ca=tmp_path / "none.pem")) as client:
        with pytest.raises(InvalidArgumentError, match=r"cannot read .*none\.pem"):
            await client.models.list()


async def test_an_inference_process_that_is_away_is_not_waited_for_in_vain(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "AWAY_SECONDS", 0.2)
    async with AsyncClient(servers.address, "127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match=r"is stored, but .*no server answers at 127\.0\.0\.1:1"):
            await client.load("m", "e", timeout=60)
        assert (await client.serving.get("m")).newest is not None
        await client.unload("m")
