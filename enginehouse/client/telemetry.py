"""What the GPUs and the host do: now, as it happens, and a while ago."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from google.protobuf import field_mask_pb2

from enginehouse.client.connection import Endpoint, backoff
from enginehouse.client.resources import all_pages
from enginehouse.client.values import ClusterNode, DeviceList, GpuDevice, Sample
from enginehouse.client.values.convert import duration, timestamp
from enginehouse.errors import UnavailableError, UnimplementedError
from enginehouse.v1 import telemetry_cluster_pb2 as cluster_pb
from enginehouse.v1 import telemetry_cluster_pb2_grpc, telemetry_pb2_grpc
from enginehouse.v1 import telemetry_pb2 as pb

# Tries in a row to reach an agent again that was there before: about ten seconds.
MAX_TRIES = 10


NO_CLUSTER = (
    "this is an agent of one node, which knows no cluster: give the address of a telemetry aggregator "
    "(ENGINEHOUSE_TELEMETRY), or ask for the node with snapshot() and stream()"
)

GONE = "it is not there any more since the connection was made again"


class AsyncTelemetry:
    """The telemetry of a node, or of a cluster where the address is an aggregator's.

    `fields` are paths within a sample: "gpus.power_draw_watts", "host"; all when empty.
    """

    def __init__(self, endpoint: Endpoint, parent: str) -> None:
        self._endpoint = endpoint
        self._parent = parent

    async def devices(self) -> DeviceList:
        """The GPUs; where there are none, why."""
        stub = self._endpoint.stub(telemetry_pb2_grpc.TelemetryStub)
        request = pb.ListDevicesRequest(parent=self._parent)
        devices: list[GpuDevice] = []
        while True:
            response: pb.ListDevicesResponse = await self._endpoint.unary(stub.ListDevices, request)
            devices += [GpuDevice.from_proto(device) for device in response.devices]
            if not response.next_page_token:
                return DeviceList(tuple(devices), response.message)
            request.page_token = response.next_page_token

    async def snapshot(self, *, fields: Sequence[str] = ()) -> Sample:
        """The newest sample."""
        stub = self._endpoint.stub(telemetry_pb2_grpc.TelemetryStub)
        request = pb.GetSnapshotRequest(parent=self._parent, read_mask=_mask(fields))
        return Sample.from_proto(await self._endpoint.unary(stub.GetSnapshot, request))

    async def stream(
        self, *, period: float = 1.0, fields: Sequence[str] = (), devices: Sequence[str | int] = ()
    ) -> AsyncIterator[Sample]:
        """Samples as they are taken, until the iteration is left.

        A connection that breaks (servers close old ones) is made again; samples taken meanwhile are not sent.

        Args:
            period: seconds between samples, 0.1 to 60.
            fields: what to send; all when empty.
            devices: only these GPUs, by UUID or index; all when empty.

        Raises:
            UnavailableError: the agent is not there, or stayed away.
        """
        request = pb.StreamSamplesRequest(
            parent=self._parent, read_mask=_mask(fields), period=duration(period), devices=[str(d) for d in devices]
        )
        begun, tries = False, 0
        while True:
            stub = self._endpoint.stub(telemetry_pb2_grpc.TelemetryStub)
            try:
                async for response in self._endpoint.stream(stub.StreamSamples, request):
                    begun, tries = True, 0
                    yield Sample.from_proto(response.sample, response.skipped)
                return
            except UnavailableError:
                tries += 1
                if not begun or tries >= MAX_TRIES:
                    raise
                await backoff(tries)

    async def history(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        fields: Sequence[str] = (),
        devices: Sequence[str | int] = (),
        limit: int | None = None,
    ) -> list[Sample]:
        """Past samples, oldest first, from `start` (inclusive; the oldest kept when None) to `end` (exclusive; now).

        Times without a zone are UTC.
        """
        stub = self._endpoint.stub(telemetry_pb2_grpc.TelemetryStub)
        request = pb.ListSamplesRequest(
            parent=self._parent,
            start_time=timestamp(start) if start else None,
            end_time=timestamp(end) if end else None,
            read_mask=_mask(fields),
            devices=[str(d) for d in devices],
            page_size=1000,
        )
        return [
            Sample.from_proto(s) for s in await all_pages(self._endpoint, stub.ListSamples, request, "samples", limit)
        ]

    async def cluster(
        self,
        *,
        nodes: Sequence[str] = (),
        pods: Sequence[str] = (),
        products: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> list[ClusterNode]:
        """Every node of a cluster with its newest sample.

        Args:
            nodes: only these, by id; "*" stands for any characters, here and below.
            pods: only GPUs that these pods hold, by "namespace/pod".
            products: only GPUs of these products, such as "*H200*".
            fields: what to send of the samples; all when empty.

        Raises:
            UnimplementedError: the address is an agent's.
        """
        stub = self._endpoint.stub(telemetry_cluster_pb2_grpc.ClusterTelemetryStub)
        request = cluster_pb.GetClusterSnapshotRequest(
            parent=self._parent, filter=_filter(nodes, pods, products), read_mask=_mask(fields), page_size=1000
        )
        found: list[ClusterNode] = []
        while True:
            try:
                page: cluster_pb.ClusterSnapshot = await self._endpoint.unary(stub.GetClusterSnapshot, request)
            except UnimplementedError:
                raise UnimplementedError(NO_CLUSTER) from None
            found += [ClusterNode.from_proto(node) for node in page.nodes]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def stream_cluster(
        self,
        *,
        interval: float = 1.0,
        nodes: Sequence[str] = (),
        pods: Sequence[str] = (),
        products: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> AsyncIterator[tuple[ClusterNode, ...]]:
        """The nodes of a cluster that have news, a few at a time: first all of them, then each with a newer sample or
        another state.

        A connection that breaks is made again, and all nodes come again; those that are gone come as "removed". For
        the arguments see `cluster`.

        Args:
            interval: seconds between a node's samples, 0.1 to 60.

        Raises:
            UnimplementedError: the address is an agent's.
            ResourceExhaustedError: this reader was too slow and was cut off.
            UnavailableError: the aggregator is not there, or stayed away.
        """
        request = cluster_pb.StreamClusterRequest(
            parent=self._parent,
            filter=_filter(nodes, pods, products),
            read_mask=_mask(fields),
            interval=duration(interval),
        )
        begun, tries = False, 0
        known: set[str] = set()
        while True:
            stub = self._endpoint.stub(telemetry_cluster_pb2_grpc.ClusterTelemetryStub)
            unseen = set(known)
            try:
                async for response in self._endpoint.stream(stub.StreamCluster, request):
                    begun, tries = True, 0
                    news = [ClusterNode.from_proto(node) for node in response.nodes]
                    unseen.difference_update(node.name for node in news)
                    if response.initial_complete:
                        news += [ClusterNode(name, "removed", GONE) for name in sorted(unseen)]
                        unseen.clear()
                    for node in news:
                        (known.discard if node.state == "removed" else known.add)(node.name)
                    yield tuple(news)
                return
            except UnimplementedError:
                raise UnimplementedError(NO_CLUSTER) from None
            except UnavailableError:
                tries += 1
                if not begun or tries >= MAX_TRIES:
                    raise
                await backoff(tries)


def _filter(nodes: Sequence[str], pods: Sequence[str], products: Sequence[str]) -> cluster_pb.ClusterFilter:
    return cluster_pb.ClusterFilter(nodes=nodes, pods=pods, products=products)


def _mask(fields: Sequence[str]) -> field_mask_pb2.FieldMask | None:
    return field_mask_pb2.FieldMask(paths=list(fields)) if fields else None
