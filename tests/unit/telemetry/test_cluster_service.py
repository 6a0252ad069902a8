"""The aggregator with real streams: agents that come, end and return; readers that page, filter and sleep."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from enginehouse_telemetry.aggregator.cluster import NodeState
from enginehouse_telemetry.aggregator.discovery import AgentAddress
from enginehouse_telemetry.aggregator.metrics import ClusterMetrics
from google.protobuf import field_mask_pb2
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from enginehouse.rpc import watched_file
from enginehouse.rpc.channels import Credentials, Token
from enginehouse.rpc.status import from_rpc_error
from enginehouse.v1 import telemetry_cluster_pb2 as pb
from enginehouse.v1 import telemetry_cluster_pb2_grpc as pb_grpc
from enginehouse.v1 import telemetry_pb2

sys.path.insert(0, str(Path(__file__).parent))

from cluster_world import PARENT, FakeAgent, World, eventually, gpu, sample


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


@pytest.fixture
async def agent() -> AsyncIterator[FakeAgent]:
    made = await FakeAgent("a").start()
    yield made
    await made.stop()


def known(world: World) -> dict[str, NodeState]:
    return {node.id: node.state for node in world.cluster.nodes()}


async def test_agents_come_end_and_return(world: World, agent: FakeAgent) -> None:
    await world.crowd.become(frozenset({AgentAddress(agent.address), AgentAddress("127.0.0.1:1", node="dead")}))
    await agent.send(sample("a", 1), skipped=2)
    await eventually(lambda: known(world).get("a") is NodeState.LIVE)
    assert known(world)["dead"] is NodeState.LATE and world.crowd.counts.skipped == 2
    assert (world.crowd.agents, world.crowd.connected, world.crowd.listed()) == (2, 1, {"a", "dead"})

    agent.end()  # as a server ends old connections: back at once
    await agent.send(sample("a", 2))
    await eventually(lambda: world.crowd.counts.samples == 2)
    assert world.crowd.reconnects >= 1

    await agent.stop()
    await eventually(lambda: not world.crowd.connected)
    world.now = 4.0
    world.cluster.sweep(world.crowd.listed())
    assert known(world)["a"] is NodeState.LATE
    await agent.start()
    await agent.send(sample("a", 1))  # it counts anew
    await eventually(lambda: known(world)["a"] is NodeState.LIVE)

    await world.crowd.become(frozenset())
    world.now = 30.0
    world.cluster.sweep(world.crowd.listed())
    assert not world.cluster.nodes() and world.cluster.bytes == 0


async def test_why_a_node_is_late(world: World) -> None:
    await world.crowd.become(frozenset({AgentAddress("127.0.0.1:1", node="dead")}))
    (dead,) = world.cluster.nodes()
    await eventually(lambda: dead.problem)
    world.now = 20.0
    world.cluster.sweep(world.crowd.listed())
    assert dead.state is NodeState.LOST and dead.message.startswith("no sample yet: UNAVAILABLE")


async def test_the_agents_are_shown_the_token_of_the_day(
    agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_file, "LOOK_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("first\n")
    world = World(credentials=Credentials(token=Token(file=token)))
    await world.crowd.become(frozenset({AgentAddress(agent.address)}))
    await agent.send(sample("a", 1))
    await eventually(lambda: world.crowd.connected)
    token.write_text("second\n")
    agent.end()
    await eventually(lambda: len(agent.metadata) >= 2)
    assert [metadata["authorization"] for metadata in agent.metadata[:2]] == ["Bearer first", "Bearer second"]
    await world.close()


async def stream(world: World, **fields: Any) -> tuple[grpc.aio.Channel, Any]:
    channel = await world.serve()
    return channel, pb_grpc.ClusterTelemetryStub(channel).StreamCluster(
        pb.StreamClusterRequest(parent=PARENT, **fields)
    )


def seen(response: pb.StreamClusterResponse) -> list[tuple[str, int, int]]:
    return [(node.name.rsplit("/", 1)[-1], node.state, node.sample.sequence) for node in response.nodes]


async def test_a_stream_begins_with_all_and_goes_on_with_news(world: World) -> None:
    world.take(sample("a", 1))
    world.take(sample("b", 1))
    channel, call = await stream(world)
    first = await call.read()
    assert first.initial_complete
    assert seen(first) == [("a", pb.NODE_STATE_LIVE, 1), ("b", pb.NODE_STATE_LIVE, 1)]
    world.take(sample("b", 2), at=1.0)
    assert seen(await call.read()) == [("b", pb.NODE_STATE_LIVE, 2)]
    world.now = 20.0
    world.cluster.sweep(["a"])
    told = await call.read()
    assert seen(told) == [("a", pb.NODE_STATE_LOST, 0), ("b", pb.NODE_STATE_REMOVED, 0)]
    assert told.nodes[0].state_message == "no sample for 20 s"
    world.consumers.close()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE and "connect again" in ended.value.details()
    await channel.close()


async def test_messages_are_small_and_the_first_nodes_end_with_a_mark(world: World) -> None:
    size = 100_000  # three of them are more than a message may have
    for number in range(7):
        world.take(sample(f"n{number}", 1, telemetry_pb2.GpuSample(uuid="x" * size)))
    channel, call = await stream(world)
    first = [await call.read() for _ in range(3)]
    assert [len(response.nodes) for response in first] == [3, 3, 1]
    assert [response.initial_complete for response in first] == [False, False, True]
    world.take(sample("n0", 2), at=1.0)
    assert not (await call.read()).initial_complete
    await channel.close()


async def test_a_reader_that_leaves_is_no_error(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    channel, call = await stream(world)
    await call.read()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()  # so that it is cancelled before the channel goes, which now and then takes the news with it
    await channel.close()
    await eventually(lambda: not len(world.consumers))
    assert "call failed" not in "".join(capfd.readouterr())


async def test_a_stream_of_nothing_says_so_and_waits(world: World) -> None:
    channel, call = await stream(world, filter=pb.ClusterFilter(pods=["team-a/*"]))
    assert await call.read() == pb.StreamClusterResponse(initial_complete=True)
    world.take(sample("a", 1, gpu("one", "H200", "team-b/x")))
    world.take(sample("b", 1, gpu("two", "H200", "team-a/x"), gpu("three")))
    (node,) = (await call.read()).nodes
    assert [one.uuid for one in node.sample.gpus] == ["two"]
    await channel.close()


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_go_on() -> None:
    world = World(slow=0.5)
    large = telemetry_pb2.GpuSample(uuid="x" * 100_000)
    channel, sleeping = await stream(world)
    reading = pb_grpc.ClusterTelemetryStub(channel).StreamCluster(pb.StreamClusterRequest(parent=PARENT))
    await sleeping.read()
    got = 0

    async def read() -> None:
        nonlocal got
        async for response in reading:
            got += len(response.nodes)

    reader = asyncio.create_task(read())
    second = 0
    while not world.consumers.cut_off:
        second += 1
        for number in range(20):
            world.take(sample(f"n{number}", second, large), at=float(second))
        await asyncio.sleep(0.1)
    before = got
    world.take(sample("n0", second + 1, large), at=second + 1.0)
    await eventually(lambda: got > before)
    assert len(world.consumers) == 1 and not reader.done()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await sleeping.read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, ResourceExhaustedError) and "taken nothing for 0.5 s" in error.message
    reader.cancel()
    await channel.close()
    await world.close()


async def test_snapshots_page_by_page(world: World) -> None:
    for number in range(5):
        world.take(sample(f"n{number}", 1))
    request = pb.GetClusterSnapshotRequest(
        parent=PARENT, page_size=2, read_mask=field_mask_pb2.FieldMask(paths=["sequence"])
    )
    pages = []
    while True:
        page = await world.service.GetClusterSnapshot(request, None)
        pages.append([node.name.rsplit("/", 1)[-1] for node in page.nodes])
        assert all(node.sample == telemetry_pb2.Sample(sequence=1) for node in page.nodes)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        world.take(sample(f"later{len(pages)}", 1))  # met last, so on a later page
    assert [node for page in pages for node in page] == ["n0", "n1", "n2", "n3", "n4", "later1", "later2", "later3"]


async def test_a_page_stays_below_what_clients_take(world: World) -> None:
    for number in range(5):
        world.take(sample(f"n{number}", 1, telemetry_pb2.GpuSample(uuid="x" * (1 << 20))))
    page = await world.service.GetClusterSnapshot(pb.GetClusterSnapshotRequest(parent=PARENT), None)
    assert len(page.nodes) == 2 and page.next_page_token


@pytest.mark.parametrize(
    ("request_", "error", "word"),
    [
        (pb.StreamClusterRequest(parent="projects/other"), NotFoundError, "not served here"),
        (pb.StreamClusterRequest(parent="projects/default/nodes/a"), InvalidArgumentError, "parent"),
        (
            pb.StreamClusterRequest(parent=PARENT, read_mask=field_mask_pb2.FieldMask(paths=["gpus.power"])),
            InvalidArgumentError,
            "power_draw_watts",
        ),
        (
            pb.StreamClusterRequest(parent=PARENT, filter=pb.ClusterFilter(pods=["x"])),
            InvalidArgumentError,
            "namespace",
        ),
    ],
)
async def test_refusals(
    world: World, request_: pb.StreamClusterRequest, error: type[EnginehouseError], word: str
) -> None:
    with pytest.raises(error, match=word):
        await world.service.StreamCluster(request_, None)


@pytest.mark.parametrize("milliseconds", [99, 60_001])
async def test_intervals_that_are_refused(world: World, milliseconds: int) -> None:
    request = pb.StreamClusterRequest(parent=PARENT)
    request.interval.FromMilliseconds(milliseconds)
    with pytest.raises(InvalidArgumentError, match=r"expected 0\.1 s to 60 s"):
        await world.service.StreamCluster(request, None)


async def test_metrics(world: World) -> None:
    lost = gpu("three", "NVIDIA L4")
    lost.state = telemetry_pb2.DEVICE_STATE_LOST
    lost.ClearField("power_draw_watts")
    world.take(sample("a", 1, gpu("one", "NVIDIA H200", "team-a/x"), gpu("two", "NVIDIA H200")))
    world.take(sample("b", 1, lost))
    world.cluster.meet("c")
    registry = CollectorRegistry()
    registry.register(ClusterMetrics(world.cluster, world.crowd, world.consumers, world.pacer))
    families = {one.name: one for one in text_string_to_metric_families(generate_latest(registry).decode())}

    def values(name: str) -> dict[tuple[str, ...], float]:
        return {tuple(one.labels.values()): one.value for one in families[name].samples}

    assert values("enginehouse_cluster_nodes") == {("live",): 2, ("late",): 1, ("lost",): 0}
    assert values("enginehouse_cluster_gpus") == {("NVIDIA H200", "ok"): 2, ("NVIDIA L4", "lost"): 1}
    assert values("enginehouse_cluster_gpus_allocated") == {("NVIDIA H200",): 1, ("NVIDIA L4",): 0}
    assert values("enginehouse_cluster_gpu_power_watts") == {("NVIDIA H200",): 200}
    assert values("enginehouse_cluster_gpu_utilization_ratio_sum") == {("NVIDIA H200",): 1.0, ("NVIDIA L4",): 0.5}
    assert values("enginehouse_namespace_gpus") == {("team-a",): 1}
