"""The front's end of a worker, with a worker whose every frame a test chooses."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from enginehouse.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.framing import Decoder, encode, rights
from enginehouse.workers.link import WorkerProcess
from enginehouse.workers.regions import DeviceRegion, Place, RegionPart
from enginehouse.workers.segments import Segment, SegmentPool, create
from enginehouse.workers.tensors import TensorInput

WAIT_SECONDS = 20.0
# Says `ready`, and then does what the arguments' program says.
SCRIPT = """#!{python}
import json, os, socket, struct, sys, time
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
def send(frame):
    body = json.dumps(frame).encode()
    sock.sendall(struct.pack("<I", len(body)) + body)
send({{"type": "ready", "protocol": 1, "pid": os.getpid(), "backends": {{}}, "device": "cpu"}})
{program}
"""


def environment(folder: Path, program: str) -> WorkerEnvironment:
    python = folder / "python"
    python.write_text(SCRIPT.format(python=sys.executable, program=program))
    python.chmod(0o755)
    return WorkerEnvironment("scripted", python)


class Scripted:
    """A worker process that is this test: `send` is what it says, `frames` what it heard."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._decoder = Decoder()
        self.frames: list[dict[str, Any]] = []

    def send(self, frame: dict[str, Any], descriptor: int | None = None) -> None:
        self._socket.sendmsg([encode(frame)], rights(descriptor) if descriptor is not None else [])

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next frame of a type."""
        loop = asyncio.get_running_loop()
        while True:
            for index, frame in enumerate(self.frames):
                if frame["type"] == kind:
                    return self.frames.pop(index)
            data = await asyncio.wait_for(loop.sock_recv(self._socket, 1 << 16), WAIT_SECONDS)
            self._decoder.feed(data, [])
            while (received := self._decoder.next()) is not None:
                self.frames.append(received[0])


class Process:
    """What a `WorkerProcess` uses of an `asyncio.subprocess.Process`."""

    pid = 1

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.ended = asyncio.Event()

    def kill(self) -> None:
        self.returncode = -9
        self.ended.set()

    async def wait(self) -> int:
        await self.ended.wait()
        return self.returncode or 0


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[tuple[WorkerProcess, Scripted, Process]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    log, log_end = os.pipe()
    os.close(log_end)
    process = Process()
    worker = WorkerProcess.attach(process, ours, log, name="scripted worker")  # type: ignore[arg-type]
    yield worker, Scripted(theirs), process
    await worker.kill()
    theirs.close()


def result(identifier: int, segment: int) -> dict[str, Any]:
    output = {"name": "y", "dtype": "INT32", "shape": [1], "segment": segment, "offset": 0, "bytes": 4}
    times = dict.fromkeys(("queue_ns", "input_ns", "compute_ns", "output_ns"), 0)
    return {"type": "result", "id": identifier, "outputs": [output], **times}


def announce(peer: Scripted, segment: Segment) -> None:
    peer.send({"type": "segment", "segment": segment.id, "bytes": segment.size}, segment.descriptor)


X = {"x": np.zeros(1, np.int32)}


async def test_a_grandchild_that_keeps_the_log_open_does_not_hide_a_death(tmp_path: Path) -> None:
    program = "if os.fork(): os._exit(3)\ntime.sleep(60)"
    worker = await WorkerProcess.start(environment(tmp_path, program))
    assert await asyncio.wait_for(worker.exited, 10) == 3
    assert not worker.alive


async def test_a_cancelled_request_keeps_its_segment_until_the_worker_answers(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, _ = pair
    call = asyncio.create_task(worker.infer("m", X))
    request = await peer.hear("infer")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (await peer.hear("cancel"))["id"] == request["id"]
    # The worker may read the first's inputs still: the next one's lie elsewhere.
    second = asyncio.create_task(worker.infer("m", X))
    other = await peer.hear("infer")
    assert other["inputs"][0]["segment"] != request["inputs"][0]["segment"]
    # The result that nobody waits for is given back, and the first's segment is free again.
    segment = create(7, 4096)
    announce(peer, segment)
    peer.send(result(request["id"], 7))
    peer.send({"type": "error", "id": other["id"], "code": "INTERNAL", "message": "no"})
    with pytest.raises(InternalError):
        await second
    third = asyncio.create_task(worker.infer("m", X))
    request = await peer.hear("infer")
    assert request["release"] == [7]
    assert request["inputs"][0]["segment"] in (1, 2)
    third.cancel()
    segment.close()


async def test_a_segment_whose_descriptor_was_lost_ends_the_worker(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, _ = pair
    # As when this process has no descriptor left: whatever lies in that segment could never be read.
    peer.send({"type": "segment", "segment": 1, "bytes": 4096})
    assert await asyncio.wait_for(worker.exited, WAIT_SECONDS) == -9


async def test_outputs_that_cannot_be_read_are_given_back(pair: tuple[WorkerProcess, Scripted, Process]) -> None:
    worker, peer, _ = pair
    call = asyncio.create_task(worker.infer("m", X))
    peer.send(result((await peer.hear("infer"))["id"], 5))
    with pytest.raises(InternalError, match="segment 5"):
        await call
    call = asyncio.create_task(worker.infer("m", X))
    assert (await peer.hear("infer"))["release"] == [5]
    call.cancel()


async def test_a_result_that_its_workers_death_overtakes_is_unavailable(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, _ = pair
    call = asyncio.create_task(worker.infer("m", X))
    identifier = (await peer.hear("infer"))["id"]
    segment = create(1, 4096)
    announce(peer, segment)
    await asyncio.sleep(0.05)
    # Both are noticed in one turn of the loop, the death last.
    worker._answer(result(identifier, 1))
    worker._theirs.close()
    worker._gone = UnavailableError("dead")
    with pytest.raises(UnavailableError):
        await call
    worker._gone = None
    segment.close()


def region_input(region: DeviceRegion) -> TensorInput:
    return TensorInput("x", "FP32", (2,), (RegionPart(region, 16, 8),))


async def test_device_memory_is_opened_once_and_closed_when_nobody_uses_it(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, _ = pair
    worker.memory = ("host", "cuda")
    unused: list[DeviceRegion] = []
    region = DeviceRegion(3, "mine", 64, bytes(64), unused.append)
    place = Place("y", region, 32, 8)
    calls = [asyncio.create_task(worker.infer("m", [region_input(region)], places=[place])) for _ in range(2)]
    opening = await peer.hear("region")
    assert (opening["region"], opening["bytes"], len(opening["handle"])) == (3, 64, 88)
    peer.send({"type": "opened", "id": opening["id"]})
    for _ in calls:
        request = await peer.hear("infer")
        assert request["inputs"] == [
            {"name": "x", "dtype": "FP32", "shape": [2], "region": 3, "offset": 16, "bytes": 8}
        ]
        assert request["places"] == [{"name": "y", "region": 3, "offset": 32, "bytes": 8}]
        answer = result(request["id"], 0)
        answer["outputs"] = [{"name": "y", "dtype": "FP32", "shape": [2], "region": 3, "offset": 32, "bytes": 8}]
        assert not unused
        region.retire()
        peer.send(answer)
    for call in calls:
        (output,) = (await call).outputs
        assert output.placed and output.size == 8 and not output.data
    assert unused == [region]
    assert not any(frame["type"] == "region" for frame in peer.frames)
    with pytest.raises(NotFoundError, match="'mine' was unregistered"):
        await worker.infer("m", [region_input(region)])
    closing = asyncio.create_task(worker.close_region(region))
    frame = await peer.hear("close")
    assert frame["region"] == 3
    peer.send({"type": "closed", "id": frame["id"]})
    await closing
    await worker.close_region(region)  # it is not open: nothing to wait for


async def test_device_memory_that_cannot_be_opened_is_tried_again(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, _ = pair
    region = DeviceRegion(1, "mine", 64, bytes(64))
    with pytest.raises(FailedPreconditionError, match="scripted worker takes no CUDA shared memory"):
        await worker.infer("m", [region_input(region)])
    worker.memory = ("host", "cuda")
    for _ in range(2):
        calls = [asyncio.create_task(worker.infer("m", [region_input(region)])) for _ in range(2)]
        frame = await peer.hear("region")
        calls[0].cancel()  # whoever asked first leaves: the other one's answer is its own
        peer.send({"type": "error", "id": frame["id"], "code": "INVALID_ARGUMENT", "message": "a bad handle"})
        with pytest.raises(InvalidArgumentError, match="region 'mine' cannot be opened: a bad handle"):
            await calls[1]


async def test_a_worker_that_dies_while_it_opens_device_memory_fails_who_waits(
    pair: tuple[WorkerProcess, Scripted, Process],
) -> None:
    worker, peer, process = pair
    worker.memory = ("host", "cuda")
    call = asyncio.create_task(worker.infer("m", [region_input(DeviceRegion(1, "mine", 64, bytes(64)))]))
    await peer.hear("region")
    process.returncode = 70
    process.ended.set()
    with pytest.raises(UnavailableError, match="lost its device context"):
        await asyncio.wait_for(call, WAIT_SECONDS)


async def test_a_segment_that_cannot_be_announced_is_not_kept() -> None:
    def refuse(segment: Segment) -> None:
        raise OSError(24, "Too many open files")

    before = len(list(Path("/proc/self/fd").iterdir()))
    pool = SegmentPool(refuse, lambda s: None)
    with pytest.raises(ResourceExhaustedError, match="Too many open files"):
        pool.acquire(1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert pool.used == 0


def test_descriptors_of_frames_that_never_came_whole_are_closed() -> None:
    decoder = Decoder()
    reading, writing = os.pipe()
    decoder.feed(b"\x10", [(socket.SOL_SOCKET, socket.SCM_RIGHTS, reading.to_bytes(4, sys.byteorder))])
    decoder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)
