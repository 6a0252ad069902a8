"""The servicer without a socket: what it refuses, how it pages, what a slow stream learns."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from enginehouse_telemetry import service as service_module
from enginehouse_telemetry.history import History
from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.service import TelemetryService
from enginehouse_telemetry.streams import Streams
from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2

from enginehouse.errors import InvalidArgumentError, NotFoundError, UnavailableError
from enginehouse.v1 import telemetry_pb2 as pb

PARENT = "projects/default/nodes/n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, gpus: Any, make_reading: Any) -> None:
        self.clock = Clock()
        self.gpus = gpus
        self.streams = Streams(1.0, lambda _: None, capacity=4)
        self.hub = Hub(PARENT, History(600, 1 << 20), self.streams, self.clock)
        self.service = TelemetryService(self.hub, gpus, project="default", node="n")
        self._reading = make_reading

    def publish(self, *sequences: int) -> None:
        for sequence in sequences:
            self.clock.now = float(sequence)
            self.hub.publish(self._reading(sequence))

    async def list(self, **fields: Any) -> pb.ListSamplesResponse:
        return await self.service.ListSamples(pb.ListSamplesRequest(parent=PARENT, **fields), None)

    async def every_page(self, **fields: Any) -> list[list[int]]:
        pages, token = [], ""
        for _ in range(100):
            response = await self.list(page_token=token, **fields)
            pages.append([sample.sequence for sample in response.samples])
            token = response.next_page_token
            if not token:
                return pages
        raise AssertionError("the pages do not end")


@pytest.fixture
async def world(gpus, make_reading) -> World:  # type: ignore[no-untyped-def]
    return World(gpus, make_reading)


async def test_snapshot(world: World) -> None:
    request = pb.GetSnapshotRequest(parent="projects/default")
    with pytest.raises(UnavailableError, match="no sample"):
        await world.service.GetSnapshot(request, None)
    world.publish(1, 2)
    assert (await world.service.GetSnapshot(request, None)).sequence == 2
    request.read_mask.paths.append("host.cpu_utilization_percent")
    masked = await world.service.GetSnapshot(request, None)
    assert masked.sequence == 0 and masked.host.cpu_utilization_percent == 12.5
    world.clock.now += 100
    with pytest.raises(UnavailableError, match="driver does not answer"):
        await world.service.GetSnapshot(request, None)


@pytest.mark.parametrize(
    "parent", ["", "default", "projects/", "projects/a/nodes/", "projects/a/models/x", "a/b/c/d/e"]
)
async def test_parents_of_no_form(world: World, parent: str) -> None:
    with pytest.raises(InvalidArgumentError, match="projects/"):
        await world.service.ListDevices(pb.ListDevicesRequest(parent=parent), None)


@pytest.mark.parametrize("parent", ["projects/other", "projects/default/nodes/other", "projects/other/nodes/n"])
async def test_parents_of_others(world: World, parent: str) -> None:
    with pytest.raises(NotFoundError, match="not served here"):
        await world.service.ListDevices(pb.ListDevicesRequest(parent=parent), None)


async def test_devices_page_by_page(world: World) -> None:
    request = pb.ListDevicesRequest(parent=PARENT, page_size=1)
    first = await world.service.ListDevices(request, None)
    request.page_token = first.next_page_token
    second = await world.service.ListDevices(request, None)
    assert [first.devices[0].uuid, second.devices[0].uuid] == ["GPU-0", "GPU-1"]
    assert not second.next_page_token and not first.message


async def test_no_devices_and_why(world: World) -> None:
    world.gpus.statuses, world.gpus.message = (), "NVML does not work: NVML Shared Library Not Found"
    response = await world.service.ListDevices(pb.ListDevicesRequest(parent=PARENT), None)
    assert "Not Found" in response.message
    with pytest.raises(NotFoundError, match="NVML does not work"):
        await world.list(devices=["0"])


async def test_pages_end_where_they_began_to(world: World) -> None:
    world.publish(*range(1, 8))
    response = await world.list(page_size=3)
    assert [sample.sequence for sample in response.samples] == [1, 2, 3]
    world.publish(8, 9)
    rest = await world.list(page_size=30, page_token=response.next_page_token)
    assert [sample.sequence for sample in rest.samples] == [4, 5, 6, 7] and not rest.next_page_token
    assert await world.every_page(page_size=4) == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert await world.every_page() == [list(range(1, 10))]


async def test_time_ranges(world: World, make_reading) -> None:  # type: ignore[no-untyped-def]
    world.publish(*range(1, 8))
    start, end = timestamp_pb2.Timestamp(), timestamp_pb2.Timestamp()
    start.FromNanoseconds(make_reading(3).time_ns)
    end.FromNanoseconds(make_reading(6).time_ns)
    assert await world.every_page(start_time=start, end_time=end) == [[3, 4, 5]]
    assert await world.every_page(start_time=start, end_time=end, page_size=2) == [[3, 4], [5]]
    assert await world.every_page(start_time=end) == [[6, 7]]
    with pytest.raises(InvalidArgumentError, match="end_time"):
        await world.list(start_time=end, end_time=start)


async def test_a_page_ends_before_a_clients_message_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(*range(1, 6))
    size = pb.Sample.FromString(world.hub.history.between(1, 1, None, None)[0].data).ByteSize()
    monkeypatch.setattr(service_module, "MAX_PAGE_BYTES", 2 * size + size // 2)
    assert await world.every_page() == [[1, 2], [3, 4], [5]]
    monkeypatch.setattr(service_module, "MAX_PAGE_BYTES", 1)
    assert await world.every_page() == [[1], [2], [3], [4], [5]]


async def test_devices_filter(world: World) -> None:
    world.publish(1)
    for wanted, expected in ((["GPU-1"], [1]), (["0"], [0]), (["1", "GPU-0"], [0, 1]), ([], [0, 1])):
        (sample,) = (await world.list(devices=wanted)).samples
        assert [gpu.index for gpu in sample.gpus] == expected
        assert sample.host.cpu_utilization_percent == 12.5
    for unknown in ("GPU-9", "2", "", "-1"):
        with pytest.raises(NotFoundError, match="this node has 0"):
            await world.list(devices=[unknown])


@pytest.mark.parametrize("seconds", [0.0, 0.099, 60.001, -1.0])
async def test_periods_out_of_bounds(world: World, seconds: float) -> None:
    period = duration_pb2.Duration()
    period.FromNanoseconds(int(seconds * 1e9))
    stream = world.service.StreamSamples(pb.StreamSamplesRequest(parent=PARENT, period=period), None)
    with pytest.raises(InvalidArgumentError, match="period"):
        await anext(stream)


async def test_a_slow_stream_skips_and_learns_how_many(world: World) -> None:
    mask = field_mask_pb2.FieldMask(paths=["sequence", "gpus.index"])
    request = pb.StreamSamplesRequest(parent=PARENT, read_mask=mask, devices=["1"])
    stream = world.service.StreamSamples(request, None)
    first = anext(stream)
    task = asyncio.ensure_future(first)
    await asyncio.sleep(0)
    world.publish(1)
    response = await task
    assert (response.sample.sequence, response.skipped, len(response.sample.gpus)) == (1, 0, 1)
    world.publish(*range(2, 12))
    got = [await anext(stream) for _ in range(4)]
    assert [(item.sample.sequence, item.skipped) for item in got] == [(8, 6), (9, 0), (10, 0), (11, 0)]
    world.streams.close()
    with pytest.raises(UnavailableError, match="stopping"):
        await anext(stream)


async def test_leaving_a_stream_ends_its_subscription(world: World) -> None:
    period = duration_pb2.Duration(nanos=100_000_000)
    stream = world.service.StreamSamples(pb.StreamSamplesRequest(parent=PARENT, period=period), None)
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert world.streams.period == 0.1
    world.publish(1)
    await task
    await stream.aclose()
    assert world.streams.period == 1.0 and len(world.streams) == 0


def test_requests_are_checked_in_every_call() -> None:
    """Each request of the service has a parent: what the checks above rest on."""
    service = pb.DESCRIPTOR.services_by_name["Telemetry"]
    inputs = itertools.chain(method.input_type for method in service.methods)
    assert all("parent" in message.fields_by_name for message in inputs)
