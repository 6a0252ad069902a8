"""Full queues, deadlines, clients that leave, workers that die or hang, and a server that is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton_aio
from google.rpc import error_details_pb2, status_pb2
from inference_world import ENDLESS, LONG, Server, floats, load, steps, tensor, wait_for
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

StartServer = Callable[..., Server]
FRONTS = pytest.mark.parametrize("fronts", ["1", "2"])


def code(error: Any) -> str:
    return str(error.status()).removeprefix("StatusCode.")


def works(client: Any, model: str = "double") -> bool:
    """Whether the model answers, and rightly."""
    sent = floats(2)
    try:
        received = client.infer(model, [tensor("x", sent, "FP32")]).as_numpy("y")
    except InferenceServerException as error:
        assert code(error) == "UNAVAILABLE", error
        return False
    np.testing.assert_array_equal(received, 2 * sent)
    return True


def executions(client: Any, model: str) -> int:
    return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def begin_endless(server: Server, client: Any) -> tuple[Any, psutil.Process]:
    """A request that never ends, once it runs: where its error will appear, and the worker that runs it."""
    (worker,) = server.workers()
    before = worker.cpu_times().user
    results: list[Any] = []
    client.async_infer("slow", [steps(ENDLESS)], callback=lambda result, error: results.append(error))
    wait_for(lambda: worker.cpu_times().user > before + 0.2)
    return results, worker


@asynccontextmanager
async def occupied(server: Server, client: Any, model: str) -> AsyncIterator[None]:
    """While the model's only instance runs something long; at the end, that has ended well."""
    (worker,) = server.workers()
    before = worker.cpu_times().user
    running = asyncio.create_task(client.infer(model, [steps(LONG)]))
    while worker.cpu_times().user < before + 0.1:
        assert not running.done()
        await asyncio.sleep(0.01)
    yield
    await running


def test_a_full_queue_refuses_and_says_when_to_try_again(server: Server, client: Any, models: Path) -> None:
    load(client, models, "slow", "narrow", max_queue_size=2)

    async def burst() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:
            # Whichever runs first takes long enough for all to arrive.
            calls = [asynchronous.infer("narrow", [steps(LONG)]) for _ in range(6)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    answers = asyncio.run(burst())
    errors = [a for a in answers if isinstance(a, Exception)]
    assert len(errors) == 3, answers
    assert {code(e) for e in errors} == {"RESOURCE_EXHAUSTED"}
    assert "'narrow'" in str(errors[0]) and "2 requests wait" in str(errors[0])
    client.unload_model("narrow")


def test_a_full_queue_carries_retry_info(server: Server, client: Any, models: Path) -> None:
    load(client, models, "slow", "narrow", max_queue_size=1)
    request = service_pb2.ModelInferRequest(model_name="narrow")
    request.inputs.add(name="steps", datatype="INT64", shape=[1, 1])
    request.raw_input_contents.append(np.array([LONG], np.int64).tobytes())
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request) for _ in range(3)]
        error = next(e for e in (call.exception() for call in calls) if e is not None)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    kinds = {d.TypeName() for d in status_pb2.Status.FromString(details).details}
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name in kinds
    client.unload_model("narrow")


def test_what_waits_too_long_is_not_computed(server: Server, client: Any, models: Path) -> None:
    load(client, models, "slow", "late", max_batch_size=1)

    async def run() -> list[Any]:
        async with (
            triton_aio.InferenceServerClient(server.address) as asynchronous,
            occupied(server, asynchronous, "late"),
        ):
            late = [
                asynchronous.infer("late", [steps(1)], timeout=10_000),
                asynchronous.infer("late", [steps(1)], client_timeout=0.1),
            ]
            answers = list(await asyncio.gather(*late, return_exceptions=True))
            leaving = asyncio.create_task(asynchronous.infer("late", [steps(1)]))
            await asyncio.sleep(0.1)
            leaving.cancel()
            return answers

    for error in asyncio.run(run()):
        assert code(error) == "DEADLINE_EXCEEDED"
    assert executions(client, "late") == 1
    client.unload_model("late")


def test_a_model_limits_how_long_its_requests_wait(server: Server, client: Any, models: Path) -> None:
    load(client, models, "slow", "strict", max_batch_size=1, queue_timeout_us=10_000)

    async def run() -> Any:
        async with (
            triton_aio.InferenceServerClient(server.address) as asynchronous,
            occupied(server, asynchronous, "strict"),
        ):
            (answer,) = await asyncio.gather(asynchronous.infer("strict", [steps(1)]), return_exceptions=True)
            return answer

    error = asyncio.run(run())
    assert code(error) == "DEADLINE_EXCEEDED" and "in the queue" in str(error)
    client.unload_model("strict")


@FRONTS
def test_a_worker_that_is_killed_costs_what_was_in_flight_and_no_more(
    start_server: StartServer, models: Path, fronts: str
) -> None:
    server = start_server(fronts=fronts)
    client = server.client()
    for model in ("double", "slow"):
        load(client, models, model)
    errors, worker = begin_endless(server, client)
    worker.kill()
    wait_for(lambda: errors)
    assert code(errors[0]) == "UNAVAILABLE" and "SIGKILL" in str(errors[0])
    assert client.is_server_live()
    wait_for(lambda: works(client))
    assert [w.pid for w in server.workers()] != [worker.pid]
    wait_for(lambda: client.is_model_ready("slow"))
    assert {m.state for m in client.get_model_repository_index().models} == {"READY"}
    assert server.stop() == 0


def test_a_worker_that_hangs_is_replaced(start_server: StartServer, models: Path) -> None:
    server = start_server(ping_interval_seconds="0.2", ping_timeout_seconds="2")
    client = server.client()
    load(client, models, "double")
    (worker,) = server.workers()
    worker.send_signal(signal.SIGSTOP)
    assert not works(client)
    wait_for(lambda: works(client))
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_batch_that_never_ends_is_ended(start_server: StartServer, models: Path) -> None:
    server = start_server(ping_interval_seconds="0.2", inference_timeout_seconds="1")
    client = server.client()
    load(client, models, "slow")
    errors, _ = begin_endless(server, client)
    wait_for(lambda: errors)
    assert code(errors[0]) == "UNAVAILABLE"


def test_a_model_that_keeps_crashing_its_worker_is_given_up_and_others_live(
    start_server: StartServer, models: Path
) -> None:
    server = start_server(crash_limit="2")
    client = server.client()
    for model in ("double", "slow"):
        load(client, models, model)
    for _ in range(2):
        wait_for(lambda: works(client) and client.is_model_ready("slow"))
        errors, worker = begin_endless(server, client)
        os.kill(worker.pid, signal.SIGSEGV)
        wait_for(lambda e=errors: e)
    wait_for(lambda: works(client))
    assert not client.is_model_ready("slow")
    reason = next(m.reason for m in client.get_model_repository_index().models if m.name == "slow")
    assert "crashed its worker 2 times" in reason
    with pytest.raises(InferenceServerException, match="crashed its worker"):
        client.infer("slow", [steps(1)])
    # By hand it gets another chance.
    load(client, models, "slow")
    assert client.infer("slow", [steps(1)]).as_numpy("y").shape == (1, 1)
    assert works(client)


def test_a_worker_dies_with_its_front(start_server: StartServer, models: Path) -> None:
    server = start_server()
    load(server.client(), models, "double")
    (worker,) = server.workers()
    server.kill()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


@FRONTS
def test_sigterm_finishes_what_runs_and_exits_0(start_server: StartServer, models: Path, fronts: str) -> None:
    server = start_server(fronts=fronts)
    client = server.client()
    load(client, models, "slow")
    (worker,) = server.workers()
    before = worker.cpu_times().user
    answers: list[Any] = []
    streamed: list[Any] = []
    client.async_infer("slow", [steps(LONG)], callback=lambda result, error: answers.append((result, error)))
    # An idle stream must not hold the server up.
    client.start_stream(lambda result, error: streamed.append((result, error)))
    client.async_stream_infer("slow", [steps(1)])
    wait_for(lambda: worker.cpu_times().user > before + 0.2)
    assert server.stop() == 0
    wait_for(lambda: answers)
    result, error = answers[0]
    assert error is None and result.as_numpy("y").shape == (1, 1)
    assert not worker.is_running()


def test_bad_settings_and_a_port_in_use_are_told(server: Server, start_server: StartServer) -> None:
    for fronts in ("1", "2"):
        with pytest.raises(AssertionError, match="port is in use"):
            start_server("second", port=str(server.port), fronts=fronts)
    with pytest.raises(AssertionError, match="wrong settings"):
        start_server("third", max_queue_size="none")
