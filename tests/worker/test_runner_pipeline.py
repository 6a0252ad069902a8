"""The runner over a pipelined instance: rings, segments that the device reads, regions. The device is a stand-in."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import queue
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import NARROW, Cuda, make
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.host_memory import PeerMemory
from enginehouse_worker.runner.framing import Channel
from enginehouse_worker.runner.regions import RegionMap
from enginehouse_worker.runner.segments import SegmentMap, SegmentPool
from enginehouse_worker.runner.server import Runner


class Backend:
    name = "tensorrt"

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def version(self) -> str:
        return "8.6.0"

    def build(self, *args: Any, **options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def load(self, engine: Path, *, device: str, options: Any) -> Any:
        return self._engine

    def device_memory(self, device: str) -> PeerMemory:
        return PeerMemory(device)


class Front:
    """The other end of a runner's socket."""

    def __init__(self, engine: Any, folder: Path, device: str = "cuda:0", **load: Any) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = Channel(ours)
        self.runner = Runner(Channel(theirs), device, {"tensorrt": "8.6.0"}, lambda name: Backend(engine))
        self._thread = threading.Thread(target=self.runner.run, daemon=True)
        self._thread.start()
        self.theirs = SegmentMap()
        self.pool = SegmentPool(self._announce, lambda s: self.channel.send({"type": "drop", "segment": s.id}), 1 << 13)
        self._answers: dict[Any, queue.SimpleQueue[Any]] = {}
        received = self.channel.receive()
        assert received is not None
        self.ready = received[0]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        (folder / "engine.json").write_text(json.dumps({"backend": "tensorrt", "max_batch_size": 8}))
        self._next = 0
        self.loaded = self.ask({"type": "load", "model": "m", "engine": str(folder), "warmup": [1], **load})

    def start(self, frame: dict[str, Any]) -> int:
        self._next += 1
        self._answers[self._next] = queue.SimpleQueue()
        self.channel.send({**frame, "id": self._next})
        return self._next

    def wait(self, identifier: int) -> Any:
        return self._answers[identifier].get(timeout=20)

    def ask(self, frame: dict[str, Any]) -> Any:
        return self.wait(self.start(frame))

    def send_batch(self, x: np.ndarray, z: np.ndarray, **more: Any) -> tuple[int, int]:
        """Start an inference; its id, and the segment it is in."""
        segment = self.pool.acquire(x.nbytes + z.nbytes + 64)
        inputs, offset = [], 0
        for name, array in (("x", x), ("z", z)):
            segment.view()[offset : offset + array.nbytes] = array.tobytes()
            place = {"segment": segment.id, "offset": offset, "bytes": array.nbytes}
            inputs.append({"name": name, "dtype": "INT32", "shape": list(array.shape), **place})
            offset += -(-array.nbytes // 64) * 64
        return self.start({"type": "infer", "model": "m", "inputs": inputs, "outputs": [], **more}), segment.id

    def receive_batch(self, started: tuple[int, int]) -> Any:
        answer = self.wait(started[0])
        self.pool.release(started[1])
        if answer["type"] == "result" and "segment" in answer["outputs"][0]:
            (y,) = answer["outputs"]
            data = bytes(self.theirs.view(y["segment"], y["offset"], y["bytes"]))
            self.channel.send({"type": "release", "segments": [y["segment"]]})
            return np.frombuffer(data, np.int32).reshape(y["shape"])
        return answer

    def stop(self) -> None:
        self.channel.send({"type": "shutdown"})
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        self.channel.close()

    def _announce(self, segment: Any) -> None:
        self.channel.send({"type": "segment", "segment": segment.id, "bytes": segment.size}, segment.descriptor)

    def _read(self) -> None:
        try:
            while (received := self.channel.receive()) is not None:
                frame, descriptor = received
                if frame["type"] == "segment" and descriptor is not None:
                    self.theirs.add(frame["segment"], frame["bytes"], descriptor)
                elif frame["type"] == "drop":
                    self.theirs.drop(frame["segment"])
                else:
                    self._answers[frame["id"]].put(frame)
        except OSError:
            return


World = tuple[Front, Cuda, Any]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    bindings, engine, loaded = make(monkeypatch, signature=NARROW)
    front = Front(loaded, tmp_path, instances=2)
    yield front, bindings, engine
    front.stop()
    assert not bindings.alive and not any(bindings.opened.values())


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x, z = random.integers(-99, 99, (2, count, 3)).astype(np.int32)
    return x, z


def region(front: Front, bindings: Cuda, number: int, size: int = 4096, **change: Any) -> tuple[Any, np.ndarray]:
    """Device memory of another process, opened as a region: the answer, and its content."""
    memory = (ctypes.c_uint8 * size)()
    handle = bytes([number]) * 64
    bindings.exported[handle] = memory
    frame = {"type": "region", "region": number, "bytes": size, "handle": base64.b64encode(handle).decode(), **change}
    return front.ask(frame), np.frombuffer(memory, np.int32)


def in_region(number: int, name: str, array: np.ndarray, offset: int) -> dict[str, Any]:
    place = {"region": number, "offset": offset, "bytes": array.nbytes}
    return {"name": name, "dtype": "INT32", "shape": list(array.shape), **place}


def test_batches_of_mixed_sizes_over_two_instances(world: World) -> None:
    front, bindings, _ = world
    assert front.ready["memory"] == ["host", "cuda"]
    assert (front.loaded["concurrency"], front.loaded["device_memory_bytes"]) == (3, 2 * (1000 + 3 * 3 * 8 * 3 * 4))
    random = np.random.default_rng(0)
    for wave in range(12):
        batches = [rows(int(random.integers(1, 9)), wave * 20 + n) for n in range(20)]
        started = [front.send_batch(x, z) for x, z in batches]
        for (x, z), item in zip(batches, started, strict=True):
            np.testing.assert_array_equal(front.receive_batch(item), 2 * x + z)
    # Only the warm-up came from memory of the worker's own, once an instance and tensor.
    assert bindings.kept()["pinned"] == 2 * 3
    # The front keeps 8 KiB and dropped the rest: what is registered are those, and the worker's own segments.
    own = front.runner._pool
    assert front.ask({"type": "ping"})["type"] == "pong"
    assert len(bindings.registered) <= 2 + len(own._registered)
    assert not own._used


@pytest.mark.parametrize("registers", [True, False])
def test_pages_mapped_for_reading_that_cannot_be_locked(world: World, registers: bool) -> None:
    front, bindings, _ = world
    bindings.reads_only, bindings.registers = False, registers
    for seed in range(5):
        x, z = rows(4, seed)
        np.testing.assert_array_equal(front.receive_batch(front.send_batch(x, z)), 2 * x + z)
    # One segment of the front, tried twice, and one of the worker: each was tried once and is used again.
    assert bindings.calls["register"] == 3
    assert {flags for _, flags in bindings.registered.values()} == ({1} if registers else set())


@pytest.mark.parametrize("registers", [True, False])
def test_a_batch_in_pieces_of_several_segments(world: World, registers: bool) -> None:
    front, bindings, _ = world
    bindings.registers = registers
    for seed in range(4):
        x, z = rows(6, seed)
        segments = [front.pool.acquire(64) for _ in range(3)]
        pieces = []
        for segment, part in zip(segments, np.split(x, [1, 3]), strict=True):
            segment.view()[8 : 8 + part.nbytes] = part.tobytes()
            pieces.append([segment.id, 8, part.nbytes])
        whole = front.pool.acquire(z.nbytes)
        whole.view()[: z.nbytes] = z.tobytes()
        inputs = [
            {"name": "x", "dtype": "INT32", "shape": [6, 3], "pieces": pieces},
            {"name": "z", "dtype": "INT32", "shape": [6, 3], "segment": whole.id, "offset": 0, "bytes": z.nbytes},
        ]
        started = front.start({"type": "infer", "model": "m", "inputs": inputs, "outputs": []})
        np.testing.assert_array_equal(front.receive_batch((started, whole.id)), 2 * x + z)
        for bad in ([*pieces, pieces[0]], [[999, 0, 4]], [[1, 2]], []):
            inputs[0]["pieces"] = bad
            refused = front.ask({"type": "infer", "model": "m", "inputs": inputs, "outputs": []})
            assert refused["code"] == "INVALID_ARGUMENT", refused
        for segment in segments:
            front.pool.release(segment.id)


@pytest.mark.parametrize("registers", [True, False])
def test_a_file_is_read_and_never_touched_in_a_map(world: World, tmp_path: Path, registers: bool) -> None:
    front, bindings, _ = world
    bindings.registers = registers
    x, z = rows(5, 1)
    path = tmp_path / "client"
    path.write_bytes(bytes(100) + x.tobytes() + z.tobytes() + bytes(9000))
    with path.open("r+b") as file:
        front.channel.send({"type": "segment", "segment": 77, "bytes": 8000, "file": True}, file.fileno())
    inputs = [
        {"name": "x", "dtype": "INT32", "shape": [5, 3], "segment": 77, "offset": 100, "bytes": 60},
        {"name": "z", "dtype": "INT32", "shape": [5, 3], "pieces": [[77, 160, 24], [77, 184, 36]]},
    ]
    frame = {"type": "infer", "model": "m", "inputs": inputs, "outputs": []}
    unused = front.pool.acquire(1).id
    np.testing.assert_array_equal(front.receive_batch((front.start(frame), unused)), 2 * x + z)
    outside = [{**inputs[0], "offset": 7990}, inputs[1]]
    assert front.ask({**frame, "inputs": outside})["code"] == "INVALID_ARGUMENT"
    if not registers:  # else the device has the pages that were there
        os.truncate(path, 150)
        refused = front.ask(frame)
        assert refused["code"] == "INVALID_ARGUMENT" and "ends after 150 bytes" in refused["message"]
    front.channel.send({"type": "drop", "segment": 77})
    assert front.ask(frame)["code"] == "INVALID_ARGUMENT"
    own = front.runner._pool
    assert len(bindings.registered) <= len(own._registered)


def test_a_file_that_was_made_smaller_is_not_mapped(world: World, tmp_path: Path) -> None:
    front, bindings, _ = world
    path = tmp_path / "client"
    path.write_bytes(bytes(8000))
    with path.open("r+b") as file:
        front.channel.send({"type": "segment", "segment": 77, "bytes": 8000, "file": True}, file.fileno())
    assert front.ask({"type": "ping"})["type"] == "pong"
    os.truncate(path, 50)
    before = bindings.calls["register"]
    place = {"dtype": "INT32", "shape": [5, 3], "segment": 77, "offset": 0, "bytes": 60}
    inputs = [{"name": name, **place} for name in ("x", "z")]
    refused = front.ask({"type": "infer", "model": "m", "inputs": inputs, "outputs": []})
    assert refused["code"] == "INVALID_ARGUMENT" and "ends after 50 bytes" in refused["message"]
    assert bindings.calls["register"] <= before + 1  # the worker's own segment


def test_failures_cost_nothing_else(world: World) -> None:
    front, _, _ = world
    x, z = rows(9, 0)
    assert front.receive_batch(front.send_batch(x, z))["code"] == "INVALID_ARGUMENT"
    x, z = rows(2, 1)
    assert front.receive_batch(front.send_batch(x, z, outputs=["w"]))["code"] == "INVALID_ARGUMENT"
    assert front.receive_batch(front.send_batch(x, z, deadline=1))["code"] == "DEADLINE_EXCEEDED"
    assert front.ask({"type": "infer", "model": "m", "inputs": [{"name": "x"}]})["code"] == "INVALID_ARGUMENT"
    assert (
        front.ask({"type": "infer", "model": "m", "inputs": [{"name": "x", "region": 7}]})["code"] == "INVALID_ARGUMENT"
    )
    for _ in range(8):  # more than the rings have room for
        np.testing.assert_array_equal(front.receive_batch(front.send_batch(x, z)), 2 * x + z)
    assert front.ask({"type": "ping"})["type"] == "pong"  # frames are read in order: the last release was
    assert not front.runner._pool._used
    measured = front.ask({"type": "measure", "model": "m", "batch": 4, "seconds": 0, "scope": "engine"})
    assert measured["type"] == "measured", measured


def test_inputs_and_outputs_in_regions(world: World) -> None:
    front, bindings, _ = world
    (opened, source), (_, target) = region(front, bindings, 1), region(front, bindings, 2)
    assert opened["type"] == "opened"
    x, z = rows(5, 3)
    source[16:31], source[32:47] = x.reshape(-1), z.reshape(-1)
    frame = {
        "type": "infer",
        "model": "m",
        "inputs": [in_region(1, "x", x, 64), in_region(1, "z", z, 128)],
        "outputs": ["y"],
        "places": [{"name": "y", "region": 2, "offset": 256, "bytes": 100}],
    }
    answer = front.ask(frame)
    assert answer["outputs"] == [
        {"name": "y", "dtype": "INT32", "shape": [5, 3], "bytes": 60, "region": 2, "offset": 256}
    ]
    np.testing.assert_array_equal(target[64:79].reshape(5, 3), 2 * x + z)
    assert bindings.calls["copy device"] >= 3 and target[79] == 0
    for change, words in [
        ({"places": [{"name": "y", "region": 2, "offset": 0, "bytes": 59}]}, "its place has 59"),
        ({"places": [{"name": "y", "region": 2, "offset": 4090, "bytes": 60}]}, "which has|that has 4096"),
        ({"places": [{"name": "w", "region": 2, "offset": 0, "bytes": 60}]}, "'w'"),
        ({"inputs": [in_region(1, "x", x, 4090), in_region(1, "z", z, 0)]}, "'x'.*4096"),
        ({"inputs": [{**in_region(1, "x", x, 0), "bytes": 8}, in_region(1, "z", z, 0)]}, "'x'.*takes 60"),
        ({"inputs": [in_region(9, "x", x, 0), in_region(1, "z", z, 0)]}, "unknown region 9"),
        ({"inputs": [{**in_region(1, "x", x, 0), "dtype": "BYTES"}, in_region(1, "z", z, 0)]}, "BYTES"),
    ]:
        refused = front.ask({**frame, **change})
        assert refused["code"] == "INVALID_ARGUMENT", refused
        assert re.search(words, refused["message"]), refused
    for number in (1, 2):
        assert front.ask({"type": "close", "region": number})["type"] == "closed"
    assert front.ask(frame)["code"] == "INVALID_ARGUMENT"
    assert front.ask({"type": "close", "region": 1})["code"] == "INVALID_ARGUMENT"


def test_regions_that_cannot_be_opened(world: World) -> None:
    front, bindings, _ = world
    unknown = base64.b64encode(bytes(64)).decode()
    for change in ({"handle": unknown}, {"handle": "AAAA"}, {"handle": "!"}, {"bytes": 5000}, {"bytes": 0}):
        answer, _ = region(front, bindings, 1, **change)
        assert answer["code"] == "INVALID_ARGUMENT", (change, answer)
        bindings.exported.clear()
    assert not any(bindings.opened.values())
    assert region(front, bindings, 1)[0]["type"] == "opened"
    assert region(front, bindings, 1)[0]["code"] == "INVALID_ARGUMENT"  # the number is in use
    assert front.ask({"type": "close", "region": 1})["type"] == "closed"


def test_a_worker_without_a_gpu_takes_no_device_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW)
    front = Front(loaded, tmp_path, device="cpu")
    assert front.ready["memory"] == ["host"]
    assert region(front, bindings, 1)[0]["code"] == "FAILED_PRECONDITION"
    x, _ = rows(1, 0)
    answer = front.ask({"type": "infer", "model": "m", "inputs": [in_region(1, "x", x, 0)], "outputs": []})
    assert answer["code"] == "FAILED_PRECONDITION"
    front.stop()


def test_a_region_is_closed_once_what_uses_it_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, _ = make(monkeypatch)
    memory = (ctypes.c_uint8 * 64)()
    bindings.exported[bytes(64)] = memory
    regions, closed = RegionMap(), []
    regions.open(1, 64, bytes(64), PeerMemory("cuda:0"))
    first, second = regions.hold([1, 1]), regions.hold([1])
    regions.close(1, lambda: closed.append(1))
    first.release()
    first.release()
    assert not closed and any(bindings.opened.values())
    second.release()
    assert closed and not any(bindings.opened.values())


def test_a_ping_tells_an_idle_worker_that_its_device_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    front, bindings, _ = world
    ends: list[str] = []
    monkeypatch.setattr(cuda, "lose_device", ends.append)
    front.receive_batch(front.send_batch(*rows(2, seed=0)))
    assert front.ask({"type": "ping"})["type"] == "pong" and not ends
    bindings.lost = "cudaErrorNotReady"  # work is under way
    assert front.ask({"type": "ping"})["type"] == "pong" and not ends
    bindings.lost = "cudaErrorIllegalAddress"
    front.ask({"type": "ping"})
    assert ends == ["asking the device: cudaErrorIllegalAddress"]
