"""The gRPC service `enginehouse.v1.ClusterTelemetry`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
import structlog

from enginehouse import names
from enginehouse.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError, UnavailableError
from enginehouse.v1 import telemetry_cluster_pb2 as pb
from enginehouse.v1 import telemetry_cluster_pb2_grpc as pb_grpc
from enginehouse_telemetry.aggregator.cluster import Cluster
from enginehouse_telemetry.aggregator.consumers import Consumers
from enginehouse_telemetry.aggregator.filters import ClusterFilter
from enginehouse_telemetry.aggregator.views import View
from enginehouse_telemetry.masks import ReadMask
from enginehouse_telemetry.pages import PageTokens, page_size
from enginehouse_telemetry.settings import LONGEST_PERIOD, SHORTEST_PERIOD
from enginehouse_telemetry.streams import StreamsClosed

DEFAULT_INTERVAL = 1.0

# News wait so long for others, so that a message has many nodes: a part of the interval, and this at most.
GATHER_PART, GATHER_SECONDS = 0.1, 0.1

# gRPC clients refuse messages of more than 4 MiB unless told otherwise: a page ends before that.
MAX_PAGE_BYTES = 3 << 20
# A stream's messages are smaller: a reader that stops holds one of them in our memory.
MAX_RESPONSE_BYTES = 256 << 10

_log = structlog.get_logger("cluster")


class _ReaderGone(Exception):
    """A stream's reader has left."""


class ClusterService(pb_grpc.ClusterTelemetryServicer):
    """Answers from what the agents' streams have brought."""

    def __init__(
        self,
        cluster: Cluster,
        consumers: Consumers,
        *,
        project: str,
        slow_seconds: float,
        tokens: PageTokens | None = None,
    ) -> None:
        self._cluster, self._consumers = cluster, consumers
        self._project, self._slow_seconds = project, slow_seconds
        self._tokens = tokens or PageTokens()

    async def GetClusterSnapshot(  # noqa: N802
        self, request: pb.GetClusterSnapshotRequest, context: Any
    ) -> pb.ClusterSnapshot:
        self._check_parent(request.parent)
        view = self._view(request)
        size = page_size(request.page_size, default=100, most=1000)
        after = self._tokens.read(request.page_token, request)[0] if request.page_token else 0
        snapshot = pb.ClusterSnapshot()
        snapshot.time.FromNanoseconds(time.time_ns())
        total = last = 0
        for node in self._cluster.after(after):
            if not view.add_to(snapshot.nodes, node):
                continue
            total += snapshot.nodes[-1].ByteSize()
            if len(snapshot.nodes) > 1 and (len(snapshot.nodes) > size or total > MAX_PAGE_BYTES):
                del snapshot.nodes[-1]
                snapshot.next_page_token = self._tokens.write((last, 0), request)
                break
            last = node.ordinal
        return snapshot

    # It writes through its context: only so can a message that its reader does not take be given up.
    async def StreamCluster(  # type: ignore[override] # noqa: N802
        self, request: pb.StreamClusterRequest, context: Any
    ) -> None:
        self._check_parent(request.parent)
        view, interval = self._view(request), stream_interval(request)
        chosen = ClusterFilter(request.filter)
        gather = min(GATHER_SECONDS, interval * GATHER_PART)
        try:
            with self._consumers.add(interval, chosen.wants) as consumer:
                now = time.monotonic()
                for node in self._cluster.nodes():
                    consumer.offer(node, now)
                left = consumer.waiting  # of those that were there when the stream began
                if not left:
                    await self._write(context, pb.StreamClusterResponse(initial_complete=True))
                while True:
                    news = await consumer.take(MAX_RESPONSE_BYTES)
                    response = pb.StreamClusterResponse()
                    for item in news:
                        view.add_to(response.nodes, item.node, item.skipped)
                    response.initial_complete = 0 < left <= len(news)
                    left -= len(news)
                    if response.nodes or response.initial_complete:
                        await self._write(context, response)
                    if not consumer.waiting:
                        await asyncio.sleep(gather)
        except _ReaderGone:
            return
        except StreamsClosed:
            raise UnavailableError("the server is stopping: connect again", retry_after_seconds=1.0) from None

    async def _write(self, context: Any, response: pb.StreamClusterResponse) -> None:
        """Send a message.

        Raises:
            ResourceExhaustedError: the reader takes nothing.
            _ReaderGone: there is no reader any more.
        """
        try:
            await asyncio.wait_for(context.write(response), self._slow_seconds)
        except grpc.aio.InternalError as error:  # a connection that broke; one that was closed cancels us
            raise _ReaderGone from error
        except asyncio.TimeoutError:
            self._consumers.cut_off += 1
            _log.warning("a slow reader is cut off", peer=context.peer(), seconds=self._slow_seconds)
            raise ResourceExhaustedError(
                f"this stream's reader has taken nothing for {self._slow_seconds:g} s and is cut off: read faster, or "
                "ask for less with a filter, a read_mask or a longer interval"
            ) from None

    def _view(self, request: pb.GetClusterSnapshotRequest | pb.StreamClusterRequest) -> View:
        return View(ClusterFilter(request.filter), ReadMask(request.read_mask.paths), self._cluster.name_of)

    def _check_parent(self, parent: str) -> None:
        project = names.parse_project(parent)
        if project != self._project:
            raise NotFoundError(f"project {project!r} is not served here: this server serves {self._project!r}")


def stream_interval(request: pb.StreamClusterRequest) -> float:
    """The seconds between a node's samples.

    Raises:
        InvalidArgumentError: outside 100 ms to 60 s.
    """
    if not request.HasField("interval"):
        return DEFAULT_INTERVAL
    interval = request.interval.seconds + request.interval.nanos / 1e9
    if not SHORTEST_PERIOD <= interval <= LONGEST_PERIOD:
        raise InvalidArgumentError(
            f"interval {interval:g} s is not valid: expected {SHORTEST_PERIOD:g} s to {LONGEST_PERIOD:g} s"
        )
    return interval
