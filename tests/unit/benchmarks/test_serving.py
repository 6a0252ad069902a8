"""The serving benchmark: what its clients ask and accept, what a server's processes cost, and the table made of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from enginehouse.bench.rows import to_line

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from serving import saturation
from serving.cases import CASES, Case, Question
from serving.load import Client, Window, WrongAnswerError, window
from serving.report import Measured, Turn, table, write_report
from serving.servers import FLOOR, OURS, SERVERS, NotStartedError, Server, start

SMALL, _, BATCH, SHARED = CASES


class Sums(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Sums rows, from the message or from shared memory, and adds `wrong`."""

    def __init__(self, wrong: int = 0) -> None:
        self._wrong = wrong
        self.shared: dict[str, Path] = {}

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self.shared[request.name] = Path("/dev/shm") / request.key.lstrip("/")
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        tensor = request.inputs[0]
        region = tensor.parameters["shared_memory_region"].string_param
        data = self.shared[region].read_bytes() if region else request.raw_input_contents[0]
        rows = np.frombuffer(data, np.uint8).reshape(tensor.shape[0], -1)
        sums = rows.sum(axis=1, keepdims=True, dtype=np.int32) + self._wrong
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="y", datatype="INT32", shape=sums.shape)
        response.raw_output_contents.append(sums.tobytes())
        return response


def ask(case: Case, servicer: Sums, clients: int = 2) -> Window:
    """A short window of some clients against a server in this process."""

    async def run() -> Window:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        made = [Client(port, case.question(number), number) for number in range(clients)]
        try:
            await asyncio.gather(*(client.open() for client in made))
            return await window(made, 0.05)
        finally:
            await asyncio.gather(*(client.close() for client in made))
            await server.stop(None)

    return asyncio.run(run())


@pytest.mark.parametrize("case", [BATCH, SHARED], ids=lambda case: case.name)
def test_clients_ask_and_check(case: Case) -> None:
    servicer = Sums()
    done = ask(case, servicer)
    assert len(done.latencies_ms) >= 2
    assert len(servicer.shared) == (2 if case.shared else 0)
    assert not any(path.exists() for path in servicer.shared.values())  # the clients clean up


def test_a_wrong_answer_ends_the_measurement() -> None:
    with pytest.raises(WrongAnswerError):
        ask(BATCH, Sums(wrong=1))


def test_each_client_asks_something_else() -> None:
    first, second = (BATCH.question(client) for client in range(2))
    assert not np.array_equal(first.sent, second.sent)
    assert first.expected.shape == (16, 1)
    np.testing.assert_array_equal(first.expected[:, 0], first.sent.reshape(16, -1).sum(axis=1))


def test_an_answer_may_be_off_by_the_tolerance() -> None:
    expected = np.array([[1.0, -2.0]], np.float32)
    exact = Question("m", "x", "FP32", expected, expected)
    near = Question("m", "x", "FP32", expected, expected, tolerance=0.01)
    off = expected + np.float32(0.015)
    assert exact.answered_by(expected.tobytes(), [1, 2])
    assert not exact.answered_by(off.tobytes(), [1, 2])
    assert near.answered_by(off.tobytes(), [1, 2])
    assert not near.answered_by((expected + 0.03).astype(np.float32).tobytes(), [1, 2])
    assert not near.answered_by(expected.tobytes(), [2, 1])


def test_cpu_time_is_that_of_the_whole_tree() -> None:
    """A child that still runs, and a grandchild that has ended, count."""
    burn = "import time\nwhile time.process_time() < 0.2: pass\n"
    child = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{burn}"
    program = (
        f"import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', {child + 'print(1, flush=True)'!r} "
        "+ '\\ntime.sleep(60)'], stdout=subprocess.PIPE)\np.stdout.readline()\nprint(1, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    server = Server(SERVERS[0], 0, process)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert server.cpu_seconds() >= 0.4
    finally:
        server.stop()


def test_a_peer_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotStartedError, match=r"environments\.py"):
        start(next(spec for spec in SERVERS if spec.environment), tmp_path, tmp_path, tmp_path)


def measured(case: Case, server: str, *cpu_ms: float) -> Measured:
    turns = tuple(Turn(ms / 1e3 * 100, 2.0, (1.0,) * 99 + (3.0,)) for ms in cpu_ms)
    return Measured(case, server, {"grpcio": "1"}, turns)


def test_the_table_compares_windows_side_by_side(tmp_path: Path) -> None:
    results = [
        measured(SMALL, OURS, 1.0, 2.0, 3.0),
        measured(SMALL, FLOOR, 0.5, 1.0, 2.0),
        Measured(SMALL, "KServe", {}, (), "it ended"),
        Measured(SHARED, "KServe", {}, (), "it ended"),
        measured(SHARED, OURS, 4.0),
    ]
    text = table(results)
    assert f"| {SMALL.name} | 2.00 (2.00) | - | 1.00 |" in text
    assert f"| {SMALL.name} | 50 | - | 50 |" in text
    assert f"| {SHARED.name} | 4.00 | - | - |" in text
    assert f"- KServe ({SMALL.name}; {SHARED.name}): it ended" in text
    write_report(tmp_path, results, clients=8, command="python run.py")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["server"], row["cpu_ms_per_request"]) for row in rows] == [(OURS, 2.0), (FLOOR, 1.0), (OURS, 4.0)]
    environments = json.loads((tmp_path / "environments.json").read_text())
    assert {row["environment"] for row in rows} == set(environments)
    assert "python run.py" in (tmp_path / "table.md").read_text()


def test_saturation_compares_windows_side_by_side() -> None:
    turns = {
        8: [
            saturation.Turn(100.0, 20.0, 96.0, 21.0, (10.0, 10.0, 18.0)),
            saturation.Turn(50.0, 20.0, 49.0, 20.5, (10.0,)),
        ]
    }
    assert "| 8 | 75.0 | 72.5 | 97.0% | 20.0 | 20.8 | 96.4% | 10 |" in saturation.table(turns)
    alone, served = saturation.rows(turns, {"model": "m"})
    assert (alone["scope"], alone["inferences_per_second"], alone["cpu_ms"]) == ("host", 75.0, 20.0)
    assert (served["scope"], served["concurrency"], served["latency_ms"]["max"]) == ("served", 8, 18.0)
    assert to_line(served)
