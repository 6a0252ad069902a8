"""Malformed requests, slow readers, half-open connections, and servers that are stopped or killed under load."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from inference_world import LONG, Server, floats, load, steps, tensor, wait_for
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from enginehouse import Balancing, Client, Retry
from enginehouse.errors import CancelledError, EnginehouseError, UnavailableError

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from robustness.case import SHRUNK, case
from robustness.malformed import KINDS, cases
from robustness.processes import footprint
from robustness.sending import Answers, SharedObjects, half_open, send
from robustness.wrong_regions import into

StartServer = Callable[..., Server]
MB = 1 << 20
CALLERS = 6


def right(client: Any) -> bool:
    """Whether a request that is right is answered rightly."""
    sent = floats(3)
    received = client.infer("double", [tensor("x", sent, "FP32")], client_timeout=60).as_numpy("y")
    return bool(np.array_equal(received, 2 * sent))


@pytest.mark.parametrize(
    "rounds", [pytest.param(8, id="296 requests"), pytest.param(280, marks=pytest.mark.slow, id="10,360 requests")]
)
def test_malformed_requests_are_refused_and_cost_nothing(start_server: StartServer, models: Path, rounds: int) -> None:
    server = start_server()
    client = server.client()
    for name in ("double", "addsub", "text", "identity", "scalar"):
        load(client, models, name)
    workers = server.workers()
    with SharedObjects(server.address) as shared:
        # What is made once, such as modules, threads and buffers, is made in the first round.
        asyncio.run(send(server.address, cases(1, 4 * len(KINDS)), Answers()))
        before = footprint(server.process.pid)
        answers = Answers()
        asyncio.run(send(server.address, cases(2, rounds * len(KINDS)), answers))
        after = footprint(server.process.pid)
        assert shared.intact(), "what lies around a region was written"
    told = [(case.kind, status, message) for case, status, message in answers.wrong]
    assert told == []
    assert answers.total == rounds * len(KINDS) and len(answers.by_kind) == len(KINDS)
    assert server.workers() == workers and right(client)
    # Each bound is a fraction of what one kept object for each request would take, and more than noise: each request
    # under way may have a segment, with three descriptors.
    assert after.descriptors - before.descriptors < 60 and after.threads - before.threads < 10, (before, after)
    assert after.rss - before.rss < 32 * MB, (before, after)
    assert server.stop() == 0


def test_a_refused_answer_is_let_go_of(start_server: StartServer, models: Path) -> None:
    # Errors that ended a stream kept what had been computed, until Python collected garbage.
    server = start_server()
    load(server.client(), models, "double")
    with SharedObjects(server.address):
        before = footprint(server.process.pid)
        refused = [case("shrunk", into(SHRUNK, 0, 16)) for _ in range(300)]
        answers = Answers()
        asyncio.run(send(server.address, refused, answers, over_streams=1, in_flight=4))
        after = footprint(server.process.pid)
    assert answers.by_status() == {"INVALID_ARGUMENT": 300}
    assert after.descriptors - before.descriptors < 45, (before, after)


def test_half_open_connections_keep_nobody_out(start_server: StartServer, models: Path) -> None:
    server = start_server()
    client = server.client()
    load(client, models, "double")
    assert right(client)
    before = footprint(server.process.pid)
    with half_open(server.port, 200) as sockets:
        assert len(sockets) == 200
        assert right(client) and right(server.client())
    wait_for(lambda: footprint(server.process.pid).descriptors < before.descriptors + 20)
    assert right(client)
    assert server.stop() == 0


def test_a_client_that_does_not_read_costs_its_window_and_no_more(start_server: StartServer, models: Path) -> None:
    server = start_server(stream_window="4")
    client = server.client()
    for name in ("double", "identity"):
        load(client, models, name)
    assert right(client)
    request = service_pb2.ModelInferRequest(model_name="identity")
    request.inputs.add(name="x", datatype="FP32", shape=[64, 4096])
    request.raw_input_contents.append(bytes(MB))
    sent: list[int] = []

    def requests() -> Iterator[Any]:
        for number in range(400):
            sent.append(number)
            yield request

    before = footprint(server.process.pid)
    with grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        next(call)
        # It reads no more. The server takes what fits its window and the connection's, and waits.
        stuck = [-1]
        wait_for(lambda: stuck[-1] == len(sent) or stuck.append(len(sent)) or time.sleep(1.0))
        assert len(sent) < 100, "it read all that came"
        assert right(client), "others are served"
        assert footprint(server.process.pid).rss - before.rss < 160 * MB
        call.cancel()
    wait_for(lambda: footprint(server.process.pid).descriptors < before.descriptors + 20)
    assert right(client)
    assert server.stop() == 0


class Load:
    """Callers that ask without a pause over the SDK: how often each was answered rightly, and what failed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.sent = self.answered = 0
        self.failures: list[EnginehouseError] = []
        self._lock = threading.Lock()
        self.done = threading.Event()

    def call(self, number: int) -> None:
        rows = floats(1 + number % 3, start=number)
        while not self.done.is_set():
            with self._lock:
                self.sent += 1
            try:
                right = np.array_equal(self._client.infer("double", rows).only(), 2 * rows)
            except EnginehouseError as error:
                with self._lock:
                    self.failures.append(error)
                time.sleep(0.02)  # what fails at once would take the machine from the others
                continue
            assert right, "another's rows"
            with self._lock:
                self.answered += 1

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        least = self.answered + count
        wait_for(lambda: self.answered >= least)


@contextmanager
def loaded(client: Client) -> Iterator[Load]:
    load = Load(client)
    threads = [threading.Thread(target=load.call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.done.set()
        for thread in threads:
            thread.join(60)
    assert load.answered + len(load.failures) == load.sent, "each call ended, one way or the other"


def start_servers(start_server: StartServer, models: Path, count: int) -> list[Server]:
    """Servers with the model `double`, started at once."""

    def start(number: int) -> Server:
        server = start_server(f"server-{number}")
        load(server.client(), models, "double")
        return server

    with ThreadPoolExecutor() as pool:
        return list(pool.map(start, range(count)))


def rows_computed(server: Server) -> int:
    statistics = server.client().get_inference_statistics("double").model_stats
    return int(statistics[0].inference_count) if statistics else 0


@pytest.mark.parametrize("attempts", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_costs_what_was_in_flight_on_it(
    start_server: StartServer, models: Path, attempts: int
) -> None:
    servers = start_servers(start_server, models, 3)
    addresses = [server.address for server in servers]
    balancing = Balancing(retry=Retry(max_attempts=attempts))
    with Client("127.0.0.1:1", addresses, balancing=balancing) as client, loaded(client) as under:
        under.more(100)
        assert all(rows_computed(server) for server in servers), "all take part"
        servers[1].kill()
        under.more(200)
        failed = list(under.failures)
        assert all(isinstance(error, UnavailableError) for error in failed)
        if attempts > 1:
            assert failed == [], "what was in flight got another try"
        else:
            # What was in flight there, and what was sent there before its end was known.
            assert len(failed) <= 2 * CALLERS
            return
        # It comes back at the same address, and gets its share again.
        again = start_server("server-1", port=str(servers[1].port))
        load(again.client(), models, "double")
        wait_for(lambda: rows_computed(again) > 20)
        assert under.failures == [], "nothing failed since"


@pytest.mark.slow
def test_a_server_that_is_stopped_under_load_fails_nothing(start_server: StartServer, models: Path) -> None:
    servers = start_servers(start_server, models, 2)
    with Client("127.0.0.1:1", [server.address for server in servers]) as client, loaded(client) as under:
        under.more(100)
        assert servers[0].stop() == 0
        under.more(100)
    assert under.failures == []


@pytest.mark.slow
def test_what_a_server_accepted_before_it_was_stopped_is_answered(start_server: StartServer, models: Path) -> None:
    server = start_server()
    client = server.client()
    for name in ("double", "slow"):
        load(client, models, name, max_batch_size=1)
    answers: list[Any] = []
    for _ in range(5):
        client.async_infer("slow", [steps(LONG // 4)], callback=lambda result, error: answers.append(error))
    metrics = f"http://127.0.0.1:{server.ports['metrics_port']}/metrics"
    waiting = 'nv_inference_pending_request_count{model="slow",version="1"} 4.0'
    wait_for(lambda: waiting in urlopen(metrics).read().decode())
    once = Balancing(retry=Retry(max_attempts=1))
    with Client("127.0.0.1:1", server.address, balancing=once) as other, loaded(other) as under:
        under.more(50)
        assert server.stop() == 0
        wait_for(lambda: under.failures)
    wait_for(lambda: len(answers) == 5)
    assert answers == [None] * 5, "one ran and four waited"
    # Of the others' requests those failed that came too late: gRPC refused them, and none got as far as our own errors.
    for error in under.failures:
        assert isinstance(error, UnavailableError | CancelledError) and not error.details, error
        assert "model" not in error.message, error


@pytest.mark.slow
def test_loading_a_large_engine_does_not_stall_others(start_server: StartServer, models: Path) -> None:
    server = start_server(worker_per_model="true")
    client = server.client()
    load(client, models, "double")
    ends: list[float] = []
    done = threading.Event()

    def ask() -> None:
        own = server.client()
        while not done.is_set():
            assert right(own)
            ends.append(time.monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait_for(lambda: len(ends) > 20)
        began = time.monotonic()
        load(client, models, "large")
        ended = time.monotonic()
    finally:
        done.set()
        thread.join(60)
    meanwhile = [began, *(end for end in ends if began < end < ended), ended]
    longest = max(after - before for before, after in pairwise(meanwhile))
    # Not a limit in seconds: a load that stalls the others takes all of its time from them.
    assert longest < (ended - began) / 2, (longest, ended - began)
    # A worker for each, which goes with its model.
    assert len(server.workers()) == 2
    client.unload_model("large")
    wait_for(lambda: len(server.workers()) == 1)
    assert right(client)
    with pytest.raises(InferenceServerException):
        load(client, models, "broken")
    assert len(server.workers()) == 1, "nothing is left of a load that failed"
    assert server.stop() == 0
