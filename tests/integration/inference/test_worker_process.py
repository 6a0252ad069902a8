"""The link to a worker process: load, run, measure, and every way it can end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from inference_world import ENDLESS, LONG

from enginehouse.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.link import WorkerProcess
from enginehouse.workers.process import spawn
from enginehouse.workers.shared import SharedFile, SharedPart, SharedSegment
from enginehouse.workers.tensors import FilePart, TensorInput, encode_bytes

ONE_THREAD = {"intra_op_threads": 1}


@pytest_asyncio.fixture
async def worker(onnx_environment: WorkerEnvironment) -> AsyncIterator[WorkerProcess]:
    running = await WorkerProcess.start(onnx_environment)
    yield running
    await running.kill()


def long(count: int = LONG) -> dict[str, np.ndarray]:
    return {"steps": np.full((1, 1), count, dtype=np.int64)}


async def test_rows_from_several_places_become_one_batch(worker: WorkerProcess, models: Path) -> None:
    loaded = await worker.load("m", models / "double", instances=2, warmup=(1, 8), options=ONE_THREAD)
    assert (loaded.batched, loaded.max_batch_size, loaded.inputs[0].name) == (True, 8, "x")
    assert loaded.seconds > 0
    first, second = np.ones((2, 4), np.float32), np.full((1, 4), 5, np.float32)
    tensor = TensorInput("x", "FP32", (3, 4), (first.tobytes(), memoryview(second.tobytes())))
    with await worker.infer("m", [tensor]) as result:
        np.testing.assert_array_equal(result.array("y"), 2 * np.concatenate([first, second]))
        assert result.compute_ns > 0


def lent(data: bytes, loan: object = None) -> SharedPart:
    """Bytes in a segment that another process made, at an odd place."""
    descriptor = os.memfd_create("another's")
    os.pwrite(descriptor, data, 100)
    os.ftruncate(descriptor, 4096)
    return SharedPart(SharedSegment(4096, descriptor), 100, len(data), loan)


async def test_memory_of_third_processes_is_read_where_it_is(worker: WorkerProcess, models: Path) -> None:
    for model in ("double", "text"):
        await worker.load(model, models / model, options=ONE_THREAD)
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    mine = [rows[start:stop].tobytes() for start, stop in ((0, 1), (1, 2), (2, 5), (5, 6))]
    alone = TensorInput("x", "FP32", (3, 4), (lent(mine[2]),))
    mixed = TensorInput("x", "FP32", (6, 4), (mine[0], mine[1], lent(mine[2]), lent(mine[3])))
    for tensor, sent in ((alone, rows[2:5]), (mixed, rows)):
        with await worker.infer("double", [tensor]) as result:
            np.testing.assert_array_equal(result.array("y"), 2 * sent)
    texts = [encode_bytes([b"a", "\u00e9" * 9]), encode_bytes([b"", b"d"])]
    tensor = TensorInput("s", "BYTES", (2, 2), (lent(texts[0]), lent(texts[1])))
    with await worker.infer("text", [tensor]) as result:
        assert result.array("t").tolist() == [[b"a", "\u00e9".encode() * 9], [b"", b"d"]]
    # One segment many times is announced once, and forgotten when it is gone.
    del alone, mixed, tensor
    maps = Path(f"/proc/{worker.pid}/maps")
    again = lent(mine[2])
    for _ in range(3):
        (await worker.infer("double", [TensorInput("x", "FP32", (3, 4), (again,))])).release()
    assert maps.read_text().count("another's") == 1
    del again
    await worker.ping()
    assert "another's" not in maps.read_text()


async def test_a_clients_file_is_read_by_the_worker(worker: WorkerProcess, models: Path, tmp_path: Path) -> None:
    await worker.load("m", models / "double", options=ONE_THREAD)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "client"
    path.write_bytes(bytes(16) + rows.tobytes())
    file = SharedFile(os.open(path, os.O_RDWR), 64)
    parts = (FilePart(file.descriptor, 16, 16, file), rows[1:].tobytes())
    for given, sent in (((FilePart(file.descriptor, 16, 48, file),), rows), (parts, rows)):
        with await worker.infer("m", [TensorInput("x", "FP32", (3, 4), given)]) as result:
            np.testing.assert_array_equal(result.array("y"), 2 * sent)
    del file, parts, given
    await worker.ping()
    assert not [n for n in Path(f"/proc/{worker.pid}/fd").iterdir() if n.resolve() == path]
    again = SharedFile(os.open(path, os.O_RDWR), 64)
    os.truncate(path, 40)
    with pytest.raises(InvalidArgumentError, match="ends after 40 bytes"):
        await worker.infer("m", [TensorInput("x", "FP32", (3, 4), (FilePart(again.descriptor, 16, 48, again),))])
    assert (await worker.infer("m", {"x": rows})).array("y").shape == (3, 4)


async def test_lent_memory_is_kept_until_the_worker_has_answered(worker: WorkerProcess, models: Path) -> None:
    class Loan:
        pass

    await worker.load("loop", models / "slow", options=ONE_THREAD)
    loan = Loan()
    there = weakref.ref(loan)
    tensor = TensorInput("steps", "INT64", (1, 1), (lent(np.full((1, 1), LONG, np.int64).tobytes(), loan),))
    task = asyncio.create_task(worker.infer("loop", [tensor]))
    await asyncio.sleep(0.1)
    task.cancel()
    del tensor, loan
    await asyncio.gather(task, return_exceptions=True)
    del task
    assert there() is not None  # the worker computes still
    while there() is not None:
        await asyncio.sleep(0.01)
    assert worker.alive


async def test_text_scalars_and_chosen_outputs(worker: WorkerProcess, models: Path) -> None:
    for model in ("text", "scalar", "addsub"):
        await worker.load(model, models / model, options=ONE_THREAD)
    text = np.array([[b"", "é".encode()]], dtype=object)
    assert (await worker.infer("text", {"s": text})).arrays()["t"].tolist() == text.tolist()
    values = {"x": np.array(2, np.float32), "y": np.arange(3, dtype=np.float32)}
    np.testing.assert_array_equal((await worker.infer("scalar", values)).array("z"), values["y"] + 2)
    ones = np.ones((1, 3), np.int32)
    assert set((await worker.infer("addsub", {"a": ones, "b": ones}, ["sum"])).arrays()) == {"sum"}


async def test_segments_are_reused_over_many_requests(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "identity", options=ONE_THREAD)
    for number in range(50):
        sent = np.full((1, 20_000), number, np.float32)
        np.testing.assert_array_equal((await worker.infer("m", {"x": sent})).array("y"), sent)
    maps = Path(f"/proc/{worker.pid}/maps").read_text().count("memfd:enginehouse")
    assert maps <= 4, "every request made a segment"


async def test_measuring(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "identity", options=ONE_THREAD)
    measured = await worker.measure("m", batch=4, seconds=0.1, seed=1, shapes={"x": (4, 100)})
    assert measured.inferences == 4 * len(measured.latencies_ns)
    assert sum(measured.latencies_ns) == measured.wall_ns >= 100_000_000
    assert measured.cpu_ns > 0
    with pytest.raises(InvalidArgumentError, match="batch 0"):
        await worker.measure("m", batch=0)


async def test_failures_are_answers(worker: WorkerProcess, models: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="ONNX Runtime cannot load"):
        await worker.load("m", models / "broken")
    with pytest.raises(InvalidArgumentError, match="abacus"):
        await worker.load("m", models / "alien")
    with pytest.raises(NotFoundError, match="nowhere"):
        await worker.load("m", models / "nowhere")
    with pytest.raises(InvalidArgumentError, match="warm-up batch 9"):
        await worker.load("m", models / "double", warmup=(9,))
    with pytest.raises(NotFoundError):
        await worker.infer("m", {})
    await worker.load("m", models / "double", options=ONE_THREAD)
    with pytest.raises(AlreadyExistsError):
        await worker.load("m", models / "double")
    with pytest.raises(InvalidArgumentError, match="unknown output 'z'"):
        await worker.infer("m", {"x": np.zeros((1, 4), np.float32)}, ["z"])
    with pytest.raises(InvalidArgumentError, match="input 'x': 4 bytes"):
        await worker.infer("m", [TensorInput("x", "FP32", (1, 4), (b"1234",))])
    await worker.unload("m")
    with pytest.raises(NotFoundError):
        await worker.unload("m")
    await worker.ping()


async def test_a_deadline_passes_in_the_worker(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "slow", options=ONE_THREAD)
    with pytest.raises(DeadlineExceededError):
        await worker.infer("m", long(1), deadline_ns=1)


async def test_pings_are_answered_and_cancelled_work_is_not_begun(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "slow", options=ONE_THREAD)
    running = asyncio.create_task(worker.infer("m", long()))
    endless = asyncio.create_task(worker.infer("m", long(ENDLESS)))
    await worker.ping()
    assert not running.done()
    endless.cancel()
    await running
    # If it had begun, this would never end.
    await worker.infer("m", long(1))


async def test_a_worker_that_dies_fails_what_is_in_flight(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "slow", options=ONE_THREAD)
    calls = [asyncio.create_task(worker.infer("m", long(ENDLESS))) for _ in range(3)]
    await worker.ping()
    os.kill(worker.pid, signal.SIGSEGV)
    for call in calls:
        with pytest.raises(UnavailableError, match="SIGSEGV"):
            await call
    assert await worker.exited == -signal.SIGSEGV
    with pytest.raises(UnavailableError):
        await worker.ping()
    assert await worker.close() == -signal.SIGSEGV


async def test_closing_finishes_what_runs(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "slow", options=ONE_THREAD)
    running = asyncio.create_task(worker.infer("m", long()))
    await worker.ping()
    assert await worker.close(timeout=60) == 0
    assert (await running).outputs[0].shape == (1, 1)


async def test_closing_kills_what_does_not_end(worker: WorkerProcess, models: Path) -> None:
    await worker.load("m", models / "slow", options=ONE_THREAD)
    running = asyncio.create_task(worker.infer("m", long(ENDLESS)))
    await worker.ping()
    assert await worker.close(timeout=0.1) == -signal.SIGKILL
    with pytest.raises(UnavailableError, match="SIGKILL"):
        await running


async def test_a_worker_ignores_the_signals_that_its_front_gets_too(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    await worker.ping()


async def test_an_environment_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no-such-python"):
        await WorkerProcess.start(WorkerEnvironment("broken", tmp_path / "no-such-python"))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the framework is missing >&2\nexit 3\n")
    python.chmod(0o755)
    lines: list[str] = []
    with pytest.raises(UnavailableError, match=r"status 3.*the framework is missing"):
        await WorkerProcess.start(WorkerEnvironment("broken", python), log=lines.append)
    assert lines == ["the framework is missing"]
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    with pytest.raises(UnavailableError, match="not ready"):
        await WorkerProcess.start(WorkerEnvironment("silent", silent), timeout=0.2)


async def test_bad_frames_are_answered_and_the_worker_lives(onnx_environment: WorkerEnvironment) -> None:
    process, sock, log = await spawn(onnx_environment, "cpu", {})
    sock.setblocking(True)
    reading = sock.makefile("rb")

    def answer() -> bytes:
        (length,) = struct.unpack("<I", reading.read(4))
        return reading.read(length)

    def send(data: bytes, announced: int | None = None) -> None:
        sock.sendall(struct.pack("<I", len(data) if announced is None else announced) + data)

    loop = asyncio.get_running_loop()

    def talk() -> None:
        assert b'"ready"' in answer()
        for data in (b"no json", b"[]", b'{"type":"what","id":1}', b'{"type":"infer","id":2}', b'{"type":"segment"}'):
            send(data)
            assert b'"error"' in answer()
        send(b'{"type":"load","id":3,"model":"m","engine":"/nowhere","instances":"many"}')
        assert b"INVALID_ARGUMENT" in answer()
        # A length beyond the limit: that many bytes are skipped.
        send(b"x" * 100_000_000, 100_000_000)
        assert b"100000000 bytes" in answer()
        send(b'{"type":"ping","id":4}')
        assert b'"pong"' in answer()

    await loop.run_in_executor(None, talk)
    reading.close()
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    os.close(log)


async def test_gpu_engines_are_refused_on_a_device_they_do_not_run_on(
    onnx_environment: WorkerEnvironment, models: Path
) -> None:
    running = await WorkerProcess.start(onnx_environment, device="cuda:7")
    with pytest.raises(FailedPreconditionError, match="cuda:7"):
        await running.load("m", models / "double")
    assert await running.close() == 0
