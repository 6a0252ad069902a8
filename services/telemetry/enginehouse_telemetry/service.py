"""The gRPC service `enginehouse.v1.Telemetry`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from enginehouse.errors import InvalidArgumentError, UnavailableError
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse.v1 import telemetry_pb2_grpc as pb_grpc
from enginehouse_telemetry.history import Kept
from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.masks import ReadMask
from enginehouse_telemetry.messages import device_message
from enginehouse_telemetry.node import GpuSource
from enginehouse_telemetry.pages import PageTokens, page_size
from enginehouse_telemetry.selection import GpuKey, check_parent, only, select_gpus
from enginehouse_telemetry.settings import LONGEST_PERIOD, SHORTEST_PERIOD
from enginehouse_telemetry.streams import StreamsClosed

DEFAULT_STREAM_PERIOD = 1.0

# gRPC clients refuse messages of more than 4 MiB unless told otherwise: a page ends before that.
MAX_PAGE_BYTES = 3 << 20


class TelemetryService(pb_grpc.TelemetryServicer):
    """Answers from the hub; asks nothing of NVML itself."""

    def __init__(self, hub: Hub, gpus: GpuSource, *, project: str, node: str, tokens: PageTokens | None = None) -> None:
        self._hub, self._gpus = hub, gpus
        self._project, self._node = project, node
        self._tokens = tokens or PageTokens()

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Any) -> pb.ListDevicesResponse:  # noqa: N802
        check_parent(request.parent, project=self._project, node=self._node)
        size = page_size(request.page_size, default=100, most=1000)
        start = self._tokens.read(request.page_token, request)[0] if request.page_token else 0
        statuses = self._gpus.statuses
        response = pb.ListDevicesResponse(message="" if statuses else self._gpus.message)
        response.devices.extend(device_message(status, self._hub.node) for status in statuses[start : start + size])
        if start + size < len(statuses):
            response.next_page_token = self._tokens.write((start + size, 0), request)
        return response

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Any) -> pb.Sample:  # noqa: N802
        check_parent(request.parent, project=self._project, node=self._node)
        mask = ReadMask(request.read_mask.paths)
        if self._hub.latest is None:
            raise UnavailableError("no sample has been taken yet: try again in a moment", retry_after_seconds=1.0)
        if stalled := self._hub.stalled_seconds:
            raise UnavailableError(
                f"there has been no sample for {stalled:.0f} s: the driver does not answer (nvidia-smi and the kernel "
                "log tell more)",
                retry_after_seconds=10.0,
            )
        return mask.apply(self._hub.latest)

    async def StreamSamples(  # noqa: N802
        self, request: pb.StreamSamplesRequest, context: Any
    ) -> AsyncIterator[pb.StreamSamplesResponse]:
        check_parent(request.parent, project=self._project, node=self._node)
        mask = ReadMask(request.read_mask.paths)
        period = stream_period(request)
        chosen = select_gpus(request.devices, self._present(), self._gpus.message)
        if request.queue < 0:
            raise InvalidArgumentError(f"queue {request.queue} is not valid: expected 0 or more")
        try:
            with self._hub.streams.subscribe(period, request.queue) as subscription:
                while True:
                    delivery = await subscription.next()
                    sample = mask.apply(only(delivery.sample, chosen))
                    yield pb.StreamSamplesResponse(sample=sample, skipped=delivery.skipped)
        except StreamsClosed:
            raise UnavailableError("the server is stopping: connect again", retry_after_seconds=1.0) from None

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Any) -> pb.ListSamplesResponse:  # noqa: N802
        check_parent(request.parent, project=self._project, node=self._node)
        mask = ReadMask(request.read_mask.paths)
        size = page_size(request.page_size, default=100, most=1000)
        chosen = select_gpus(request.devices, self._present(), self._gpus.message)
        start, end = time_range(request)
        # The pages end with the sample that was newest at the first of them, or they would never end.
        first, last = 0, self._hub.history.newest_sequence
        if request.page_token:
            first, last = self._tokens.read(request.page_token, request)
        kept = self._hub.history.between(first, last, start, end)
        samples = await asyncio.to_thread(_page, kept, size, mask, chosen)
        response = pb.ListSamplesResponse(samples=samples)
        if len(samples) < len(kept):
            response.next_page_token = self._tokens.write((kept[len(samples)].sequence, last), request)
        return response

    def _present(self) -> set[GpuKey]:
        """The GPUs that a request may name: those there now, and those of the newest sample."""
        now = {(status.identity.uuid, status.identity.index) for status in self._gpus.statuses}
        return now | {(gpu.uuid, gpu.index) for gpu in (self._hub.latest.gpus if self._hub.latest else ())}


def _page(kept: list[Kept], size: int, mask: ReadMask, chosen: frozenset[GpuKey] | None) -> list[pb.Sample]:
    """At most `size` samples and a page's bytes, one sample at least."""
    samples: list[pb.Sample] = []
    total = 0
    for item in kept[:size]:
        sample = mask.apply(only(pb.Sample.FromString(item.data), chosen))
        total += sample.ByteSize()
        if samples and total > MAX_PAGE_BYTES:
            break
        samples.append(sample)
    return samples


def stream_period(request: pb.StreamSamplesRequest) -> float:
    """The seconds between a stream's samples.

    Raises:
        InvalidArgumentError: outside 100 ms to 60 s.
    """
    if not request.HasField("period"):
        return DEFAULT_STREAM_PERIOD
    period = request.period.seconds + request.period.nanos / 1e9
    if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD:
        raise InvalidArgumentError(
            f"period {period:g} s is not valid: expected {SHORTEST_PERIOD:g} s to {LONGEST_PERIOD:g} s"
        )
    return period


def time_range(request: pb.ListSamplesRequest) -> tuple[int | None, int | None]:
    """The asked range in Unix nanoseconds.

    Raises:
        InvalidArgumentError: it ends before it begins.
    """
    start = _nanoseconds(request.start_time) if request.HasField("start_time") else None
    end = _nanoseconds(request.end_time) if request.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise InvalidArgumentError("end_time is before start_time: expected a range of time")
    return start, end


def _nanoseconds(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000_000 + moment.nanos
