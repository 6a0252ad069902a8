"""A cluster's telemetry through the SDK: pages, streams that outlive their connection, an agent's address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from enginehouse.client import AsyncClient
from enginehouse.errors import UnimplementedError
from enginehouse.v1 import telemetry_cluster_pb2 as pb
from enginehouse.v1 import telemetry_cluster_pb2_grpc as pb_grpc


def node(name: str, sequence: int = 1, state: pb.NodeState.ValueType = pb.NODE_STATE_LIVE) -> pb.ClusterNode:
    made = pb.ClusterNode(name=f"projects/default/nodes/{name}", state=state, skipped=3, address="10.0.0.1:8020")
    if state == pb.NODE_STATE_LIVE:
        made.sample.sequence = sequence
        made.received_time.seconds = 5
    return made


class Aggregator(pb_grpc.ClusterTelemetryServicer):
    """Answers with what it is given; each stream breaks in the end."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.streams: list[list[pb.StreamClusterResponse]] = []

    async def GetClusterSnapshot(self, request: pb.GetClusterSnapshotRequest, context: Any) -> pb.ClusterSnapshot:
        self.requests.append(pb.GetClusterSnapshotRequest.FromString(request.SerializeToString()))
        if not request.page_token:
            return pb.ClusterSnapshot(nodes=[node("a"), node("b", state=pb.NODE_STATE_LOST)], next_page_token="2")
        return pb.ClusterSnapshot(nodes=[node("c")])

    async def StreamCluster(
        self, request: pb.StreamClusterRequest, context: Any
    ) -> AsyncIterator[pb.StreamClusterResponse]:
        self.requests.append(request)
        for response in self.streams.pop(0):
            yield response
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")


@pytest.fixture
async def aggregator() -> AsyncIterator[Aggregator]:
    made = Aggregator()
    server = grpc.aio.server()
    pb_grpc.add_ClusterTelemetryServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made.address = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield made
    await server.stop(None)


@pytest.fixture
async def client(aggregator: Aggregator) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(telemetry=aggregator.address) as made:  # type: ignore[attr-defined]
        yield made


async def test_every_page_of_a_snapshot(client: AsyncClient, aggregator: Aggregator) -> None:
    nodes = await client.telemetry.cluster(nodes=["gpu-*"], pods=["team/x"], products=["*H200*"], fields=["sequence"])
    assert [(one.id, one.state) for one in nodes] == [("a", "live"), ("b", "lost"), ("c", "live")]
    live, lost, _ = nodes
    assert live.sample is not None and (live.sample.sequence, live.sample.skipped) == (1, 3)
    assert live.received is not None and live.received.timestamp() == 5 and live.address == "10.0.0.1:8020"
    assert lost.sample is None and lost.received is None
    first, second = aggregator.requests
    assert first.filter == pb.ClusterFilter(nodes=["gpu-*"], pods=["team/x"], products=["*H200*"])
    assert list(first.read_mask.paths) == ["sequence"] and second.page_token == "2"


async def test_a_stream_outlives_its_connection_and_says_who_is_gone(
    client: AsyncClient, aggregator: Aggregator
) -> None:
    aggregator.streams = [
        [
            pb.StreamClusterResponse(nodes=[node("a")]),
            pb.StreamClusterResponse(nodes=[node("b"), node("c")], initial_complete=True),
            pb.StreamClusterResponse(nodes=[node("c", state=pb.NODE_STATE_REMOVED)]),
        ],
        [pb.StreamClusterResponse(nodes=[node("b", 7)], initial_complete=True)],
    ]
    stream = client.telemetry.stream_cluster(interval=0.5)
    news = [[(one.id, one.state) for one in await anext(stream)] for _ in range(4)]
    assert news == [
        [("a", "live")],
        [("b", "live"), ("c", "live")],
        [("c", "removed")],
        [("b", "live"), ("a", "removed")],
    ]
    assert aggregator.requests[0].interval.ToMilliseconds() == 500
    await stream.aclose()


async def test_an_agent_knows_no_cluster() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(telemetry=f"127.0.0.1:{port}") as client:
        with pytest.raises(UnimplementedError, match="aggregator"):
            await client.telemetry.cluster()
        with pytest.raises(UnimplementedError, match="aggregator"):
            await anext(client.telemetry.stream_cluster())
    await server.stop(None)
