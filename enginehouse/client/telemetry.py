"""What the GPUs and the host do: now, as it happens, and a while ago."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from google.protobuf import field_mask_pb2

from enginehouse.client.connection import Endpoint, backoff
from enginehouse.client.resources import all_pages
from enginehouse.client.values import DeviceList, GpuDevice, Sample
from enginehouse.client.values.convert import duration, timestamp
from enginehouse.errors import UnavailableError
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse.v1 import telemetry_pb2_grpc

# Tries in a row to reach an agent again that was there before: about ten seconds.
MAX_TRIES = 10


class AsyncTelemetry:
    """The telemetry of a node. `fields` are paths within a sample: "gpus.power_draw_watts", "host"; all when empty."""

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


def _mask(fields: Sequence[str]) -> field_mask_pb2.FieldMask | None:
    return field_mask_pb2.FieldMask(paths=list(fields)) if fields else None
