"""Several front processes on one port: all answer alike, and one that dies costs its own connections only."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference_world import ENDLESS, LONG, Server, floats, load, steps, tensor, wait_for
from tritonclient.utils import InferenceServerException, shared_memory

# A connection of its own: gRPC shares one among a process's channels to an address.
OWN = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
# More than a socket takes at once, so that it goes through shared memory.
COLUMNS = 50_000


@pytest.fixture(scope="module")
def fronts(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("fronts"), fronts="2")
    try:
        for name in ("double", "identity", "text", "slow"):
            load(running.client(), models, name)
        yield running
    finally:
        running.kill()


def local_ports(server: Server) -> set[int]:
    """This process's ends of its connections to a server."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {c.laddr.port for c in connections if c.raddr and c.raddr.port == server.port}


def one_client_a_front(server: Server) -> dict[int, Any]:
    """By the front's process id, a client that is connected to it."""
    clients: dict[int, Any] = {}
    fronts = server.fronts()
    for _ in range(60):
        before = local_ports(server)
        client = triton.InferenceServerClient(server.address, channel_args=OWN)
        assert client.is_server_live()
        (port,) = local_ports(server) - before
        for front in fronts:
            if any(c.raddr and c.raddr.port == port for c in front.net_connections(kind="tcp")):
                clients.setdefault(front.pid, client)
        if len(clients) == len(fronts):
            return clients
    raise AssertionError("all connections went to one front")


def sample(server: Server, name: str, *labels: str) -> int:
    """The value of a metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['metrics_port']}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(label in line for label in labels):
                return int(float(line.rpartition(" ")[2]))
    raise AssertionError(f"no {name} of {labels}")


def cancelled(server: Server, model: str) -> int:
    return sample(server, "nv_inference_request_failure", f'model="{model}"', 'reason="CANCELED"')


def shared_descriptors(process: psutil.Process) -> int:
    """Segments of shared memory that a process has open."""
    folder, count = Path(f"/proc/{process.pid}/fd"), 0
    for link in folder.iterdir():
        try:
            count += "memfd:enginehouse" in str(link.readlink())
        except OSError:
            continue
    return count


def test_every_front_answers_alike(fronts: Server, models: Path) -> None:
    one, other = one_client_a_front(fronts).values()
    load(one, models, "double", "later")
    sent = floats(3)
    for number, client in enumerate((other, one), 1):  # at once: no front may learn of it late
        np.testing.assert_array_equal(client.infer("later", [tensor("x", sent, "FP32")]).as_numpy("y"), 2 * sent)
        statistics = [c.get_inference_statistics("later").model_stats[0] for c in (one, other)]
        assert statistics[0] == statistics[1]
        assert statistics[0].inference_stats.success.count == number
    assert one.get_model_repository_index() == other.get_model_repository_index()
    other.unload_model("later")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        one.infer("later", [tensor("x", sent, "FP32")])
    errors = []
    for client in (one, other):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("double", [tensor("x", floats(1, columns=5), "FP32")])
        errors.append((caught.value.status(), caught.value.message()))
    assert errors[0] == errors[1] and "[-1, 4]" in errors[0][1]


def test_health_of_models_reaches_every_front(fronts: Server, models: Path) -> None:
    def status(channel: grpc.Channel, service: str) -> Any:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]

    client = fronts.client()
    load(client, models, "double", "watched")
    channels = [grpc.insecure_channel(fronts.address, options=OWN) for _ in range(8)]
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for channel in channels:
        assert status(channel, "") == serving
        wait_for(lambda c=channel: status(c, "watched") == serving)
    client.unload_model("watched")
    for channel in channels:
        wait_for(lambda c=channel: status(c, "watched") == not_serving)
        channel.close()


def test_shared_memory_belongs_to_the_server_and_not_to_a_front(fronts: Server) -> None:
    one, other = one_client_a_front(fronts).values()
    sent = floats(3)
    region = shared_memory.create_shared_memory_region("both", "/enginehouse-test-both", sent.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [sent])
        one.register_system_shared_memory("both", "/enginehouse-test-both", sent.nbytes)
        with pytest.raises(InferenceServerException, match="ALREADY_EXISTS"):
            other.register_system_shared_memory("both", "/enginehouse-test-both", sent.nbytes)
        x = triton.InferInput("x", [3, 4], "FP32")
        x.set_shared_memory("both", sent.nbytes)
        np.testing.assert_array_equal(other.infer("double", [x]).as_numpy("y"), 2 * sent)
        other.unregister_system_shared_memory("both")
        assert not one.get_system_shared_memory_status().regions
    finally:
        shared_memory.destroy_shared_memory_region(region)


@pytest.mark.parametrize("columns", [4, COLUMNS])
def test_requests_of_different_fronts_share_a_batch(fronts: Server, models: Path, columns: int) -> None:
    clients = list(one_client_a_front(fronts).values())
    load(clients[0], models, "identity", "patient", max_queue_delay_us=60_000_000, preferred_batch_sizes=[4])
    parts = np.split(floats(4, columns), [1, 3])
    answers: list[Any] = []
    for number, part in enumerate(parts):
        inputs = [tensor("x", part, "FP32")]
        clients[number % 2].async_infer("patient", inputs, lambda result, error: answers.append((result, error)))
    wait_for(lambda: len(answers) == len(parts))
    got = sorted((result.as_numpy("y") for result, _ in answers), key=lambda rows: float(rows[0, 0]))
    for part, rows in zip(parts, got, strict=True):
        np.testing.assert_array_equal(rows, part)
    (statistics,) = clients[1].get_inference_statistics("patient").model_stats
    assert (statistics.execution_count, statistics.inference_count) == (1, 4)
    clients[0].unload_model("patient")


def test_text_and_typed_contents_through_shared_memory(fronts: Server) -> None:
    texts = np.array([[f"row {i}".encode() * 400, b"\xc3\xa9" * i] for i in range(19)], dtype=object)
    answer = fronts.client().infer("text", [tensor("s", texts, "BYTES")])  # more rows than the largest batch
    np.testing.assert_array_equal(answer.as_numpy("t"), texts)


def test_memory_is_used_again_however_requests_end(fronts: Server) -> None:
    big = tensor("x", floats(1, COLUMNS), "FP32")
    wrong = triton.InferInput("x", [1, COLUMNS + 1], "FP32")
    wrong._raw_content, wrong._input.shape[:] = big._raw_content, [1, COLUMNS + 1]

    async def send(client: Any) -> None:
        for _ in range(12):
            calls = [asyncio.create_task(client.infer("identity", [big])) for _ in range(4)]
            leaving = asyncio.create_task(client.infer("identity", [big]))
            await asyncio.sleep(0.002)
            leaving.cancel()
            await asyncio.gather(*calls, leaving, return_exceptions=True)
            with pytest.raises(InferenceServerException, match="expected"):
                await client.infer("identity", [wrong])
            with pytest.raises(InferenceServerException, match="no model"):
                await client.infer("nothing", [big])

    async def run() -> None:
        processes = (*fronts.fronts(), psutil.Process(fronts.process.pid), *fronts.workers())
        async with triton_aio.InferenceServerClient(fronts.address) as client:  # one connection, and so one front
            await send(client)
            before = [shared_descriptors(process) for process in processes]
            await send(client)
        # How many requests meet varies; one that kept its memory would add twelve.
        for process, count in zip(processes, before, strict=True):
            assert shared_descriptors(process) <= count + 8, process

    asyncio.run(run())


def test_a_caller_that_leaves_takes_its_request_along(fronts: Server, models: Path) -> None:
    load(fronts.client(), models, "slow", "left", max_batch_size=1)

    async def run() -> None:
        async with triton_aio.InferenceServerClient(fronts.address) as client:
            first = asyncio.create_task(client.infer("left", [steps(LONG)]))
            await asyncio.sleep(0.2)
            second = asyncio.create_task(client.infer("left", [steps(ENDLESS)]))
            await asyncio.sleep(0.2)
            second.cancel()
            await first
            await client.infer("left", [steps(1)])

    asyncio.run(run())
    (statistics,) = fronts.client().get_inference_statistics("left").model_stats
    assert (statistics.execution_count, cancelled(fronts, "left")) == (2, 1)


def test_a_front_that_is_killed_costs_its_connections_and_no_more(
    start_server: Callable[..., Server], models: Path
) -> None:
    server = start_server(fronts="2")
    for name in ("identity", "slow"):
        load(server.client(), models, name, max_batch_size=1)
    (worker,) = server.workers()
    clients = one_client_a_front(server)
    (victim, doomed), (_, other) = clients.items()
    errors: list[Any] = []
    busy = worker.cpu_times().user
    doomed.async_infer("slow", [steps(LONG)], lambda result, error: errors.append(error))
    wait_for(lambda: worker.cpu_times().user > busy + 0.1)
    doomed.async_infer("slow", [steps(ENDLESS)], lambda result, error: errors.append(error))
    doomed.infer("identity", [tensor("x", floats(1, COLUMNS), "FP32")])
    wait_for(lambda: sample(server, "nv_inference_pending_request_count", 'model="slow"') == 1)
    psutil.Process(victim).kill()
    wait_for(lambda: len(errors) == 2)
    assert [str(e.status()) for e in errors] == ["StatusCode.UNAVAILABLE"] * 2
    # The other serves on, and what waited for the dead one's callers is not computed.
    sent = floats(1, COLUMNS)
    np.testing.assert_array_equal(other.infer("identity", [tensor("x", sent, "FP32")]).as_numpy("y"), sent)
    assert other.infer("slow", [steps(1)]).as_numpy("y").shape == (1, 1)
    assert cancelled(server, "slow") == 2
    wait_for(lambda: len(server.fronts()) == 2)
    wait_for(lambda: '"a front listens again"' in server.log())
    again = one_client_a_front(server)
    assert victim not in again
    assert sample(server, "enginehouse_inference_fronts") == 2
    assert sample(server, "enginehouse_inference_front_deaths_total") == 1
    for client in again.values():
        np.testing.assert_array_equal(client.infer("identity", [tensor("x", sent, "FP32")]).as_numpy("y"), sent)
    assert server.process.poll() is None and server.workers() == [worker]
    assert server.stop() == 0


def test_a_front_that_hangs_is_replaced(start_server: Callable[..., Server]) -> None:
    server = start_server(fronts="2", ping_interval_seconds="0.2", ping_timeout_seconds="3")
    stopped = server.fronts()[0]
    stopped.suspend()
    wait_for(lambda: '"a front listens again"' in server.log())
    assert '"a front hangs"' in server.log() and stopped not in server.fronts() and len(server.fronts()) == 2
    assert server.stop() == 0


def test_fronts_end_with_the_engine_host(start_server: Callable[..., Server], models: Path) -> None:
    server = start_server(fronts="2")
    client = server.client()
    load(client, models, "double")
    fronts = server.fronts()
    server.kill()
    gone = (psutil.NoSuchProcess, psutil.ZombieProcess)

    def ended(process: psutil.Process) -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except gone:
            return True

    for front in fronts:
        wait_for(lambda f=front: ended(f))
    with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        client.infer("double", [tensor("x", floats(1), "FP32")])
    again = start_server("again", port=str(server.port), fronts="2")  # the port is free
    assert triton.InferenceServerClient(again.address, channel_args=OWN).is_server_ready()


def test_a_front_that_cannot_start_is_told(start_server: Callable[..., Server], tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("not a key")
    with pytest.raises(AssertionError, match="before it listened"):
        start_server(fronts="2", tls_certificate=str(key), tls_key=str(key))
