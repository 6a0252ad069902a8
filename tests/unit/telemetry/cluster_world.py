"""Agents and an aggregator without processes: real gRPC servers and streams in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from enginehouse_telemetry.aggregator.cluster import Cluster
from enginehouse_telemetry.aggregator.consumers import Consumers
from enginehouse_telemetry.aggregator.crowd import Crowd
from enginehouse_telemetry.aggregator.pacer import Pacer
from enginehouse_telemetry.aggregator.service import ClusterService

from enginehouse.rpc.channels import Credentials
from enginehouse.rpc.server import RpcServer, Service
from enginehouse.rpc.settings import ServerSettings
from enginehouse.v1 import telemetry_cluster_pb2_grpc as cluster_grpc
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse.v1 import telemetry_pb2_grpc as pb_grpc

PARENT = "projects/default"


def sample(node: str = "a", sequence: int = 1, *gpus: pb.GpuSample) -> pb.Sample:
    """A node's sample; one H200 that nobody holds when no GPUs are given."""
    made = pb.Sample(node=f"{PARENT}/nodes/{node}", sequence=sequence, gpus=gpus or (gpu(node),))
    made.time.GetCurrentTime()
    return made


def gpu(uuid: str, product: str = "NVIDIA H200", *pods: str) -> pb.GpuSample:
    """A GPU that some pods ("namespace/name") hold."""
    made = pb.GpuSample(uuid=uuid, product=product, power_draw_watts=100, utilization_gpu_percent=50)
    for pod in pods:
        namespace, _, name = pod.partition("/")
        made.allocations.add(namespace=namespace, pod=name, container="main")
    return made


async def eventually(check: Callable[[], Any]) -> Any:
    """The first true result of `check`; pytest's timeout ends it."""
    while not (found := check()):
        await asyncio.sleep(0.01)
    return found


class FakeAgent(pb_grpc.TelemetryServicer):
    """An agent that streams what it is given."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.streams: list[asyncio.Queue[pb.StreamSamplesResponse | None]] = []
        self.metadata: list[dict[str, str]] = []
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> FakeAgent:
        """Serve, on the same port as before."""
        server = self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_TelemetryServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        return self

    async def stop(self) -> None:
        self.streams = []
        if self._server is not None:
            await self._server.stop(None)

    async def send(self, made: pb.Sample, skipped: int = 0) -> None:
        """To everyone who streams, as soon as somebody does."""
        await eventually(lambda: self.streams)
        for queue in self.streams:
            queue.put_nowait(pb.StreamSamplesResponse(sample=made, skipped=skipped))

    def end(self) -> None:
        """End the streams, as a server does with old connections."""
        for queue in self.streams:
            queue.put_nowait(None)
        self.streams = []

    async def StreamSamples(
        self, request: pb.StreamSamplesRequest, context: Any
    ) -> AsyncIterator[pb.StreamSamplesResponse]:
        queue: asyncio.Queue[pb.StreamSamplesResponse | None] = asyncio.Queue()
        self.streams.append(queue)
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata() or ()})
        while (response := await queue.get()) is not None:
            yield response


class World:
    """An aggregator's parts; the clock of late and lost nodes is the test's."""

    def __init__(self, *, max_nodes: int = 100, slow: float = 10.0, credentials: Credentials | None = None) -> None:
        self.now = 0.0
        self.consumers = Consumers(1.0)
        self.cluster = Cluster(
            PARENT, late=3, lost=15, max_nodes=max_nodes, on_change=self.consumers.publish, clock=lambda: self.now
        )
        request = pb.StreamSamplesRequest(parent=PARENT)
        self.pacer = Pacer(1.0)
        self.crowd = Crowd(self.cluster, credentials or Credentials(), request, pacer=self.pacer, max_agents=max_nodes)
        self.service = ClusterService(self.cluster, self.consumers, project="default", slow_seconds=slow)
        self.server = RpcServer(
            ServerSettings(),
            [
                Service(
                    "enginehouse.v1.ClusterTelemetry",
                    lambda server: cluster_grpc.add_ClusterTelemetryServicer_to_server(self.service, server),
                )
            ],
        )

    def take(self, made: pb.Sample, at: float | None = None) -> None:
        """A sample from nowhere."""
        self.now = self.now if at is None else at
        self.cluster.take(made, made.ByteSize(), "nowhere:1")

    async def serve(self) -> grpc.aio.Channel:
        """Serve; a channel to it."""
        port = await self.server.start()
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])

    async def close(self) -> None:
        self.consumers.close()
        await self.crowd.close()
        await self.server.stop()
