"""Priorities, the response cache and the sharing of a device, through an unmodified client."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from inference_world import LONG, Server, floats, load, steps, tensor
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


def pending(server: Server, model: str) -> int:
    """Requests that wait in the model's queue, as the metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['metrics_port']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith(f'nv_inference_pending_request_count{{model="{model}"')]
    return int(float(found[0].rsplit(" ", 1)[1]))


def test_priorities(server: Server, client: Any, models: Path) -> None:
    levels = {"priority_levels": 2, "priority_queues": {"2": {"max_queue_size": 2}}}
    load(client, models, "slow", "ranked", max_batch_size=1, **levels)
    batching = client.get_model_config("ranked").config.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    assert batching.priority_queue_policy[2].max_queue_size == 2
    order: list[str] = []

    async def run() -> Any:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:

            async def ask(name: str, count: int, **parameters: Any) -> None:
                await asynchronous.infer("ranked", [steps(count)], **parameters)
                order.append(name)

            async def until(condition: Callable[[], bool]) -> None:
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.01)

            (worker,) = server.workers()
            before = worker.cpu_times().user
            first = asyncio.create_task(ask("first", 2 * LONG))
            await until(lambda: worker.cpu_times().user > before + 0.1)
            low = [asyncio.create_task(ask(f"low {n}", 1)) for n in range(2)]
            await until(lambda: pending(server, "ranked") == 2)
            with pytest.raises(InferenceServerException, match="2 requests wait already at priority 2") as full:
                await ask("refused", 1, priority=2)
            high = asyncio.create_task(ask("high", 1, priority=1))
            await until(lambda: pending(server, "ranked") == 3)
            await asyncio.gather(first, high, *low)
            return full.value

    refused = asyncio.run(run())
    assert str(refused.status()) == "StatusCode.RESOURCE_EXHAUSTED"
    assert order == ["first", "high", "low 0", "low 1"]
    client.unload_model("ranked")


def test_a_priority_that_is_no_number_is_refused(server: Server) -> None:
    request = service_pb2.ModelInferRequest(model_name="double")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(floats(1).tobytes())
    request.parameters["priority"].string_param = "soon"
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "parameter 'priority' is 'soon'" in refused.value.details()


def test_equal_requests_are_answered_from_the_cache(client: Any, models: Path) -> None:
    load(client, models, "double", "kept", response_cache_bytes=1_000_000)
    assert client.get_model_config("kept").config.response_cache.enable
    for start in (0, 0, 5, 0):
        sent = floats(3, start=start)
        received = client.infer("kept", [tensor("x", sent, "FP32")]).as_numpy("y")
        np.testing.assert_array_equal(received, 2 * sent)
    statistics = client.get_inference_statistics("kept").model_stats[0]
    assert (statistics.execution_count, statistics.inference_stats.success.count) == (2, 4)
    client.unload_model("kept")


def test_models_share_a_device_that_takes_one_batch(start_server: Callable[..., Server], models: Path) -> None:
    server = start_server(device_batches="1")
    client = server.client()
    load(client, models, "slow", device_share=2)
    load(client, models, "double", instances=2)
    action = model_config_pb2.ModelQueuePolicy.REJECT
    assert client.get_model_config("double").config.dynamic_batching.default_queue_policy.timeout_action == action

    async def run() -> None:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:
            long = [asyncio.create_task(asynchronous.infer("slow", [steps(20_000)])) for _ in range(10)]

            async def one(number: int) -> None:
                sent = floats(1 + number % 5, start=number)
                answer = await asynchronous.infer("double", [tensor("x", sent, "FP32")])
                np.testing.assert_array_equal(answer.as_numpy("y"), 2 * sent)

            await asyncio.gather(*(one(number) for number in range(60)), *long)

    asyncio.run(run())
    assert server.stop() == 0, server.log()


def test_requests_are_answered_while_engines_load(server: Server, client: Any, models: Path) -> None:
    names = [f"copy-{number}" for number in range(12)]
    wanted = 2 * floats(2)
    during: list[int] = []

    async def run() -> None:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:

            async def ask_while(loading: asyncio.Future[Any]) -> int:
                count = 0
                while not loading.done():
                    answer = await asynchronous.infer("double", [tensor("x", floats(2), "FP32")])
                    np.testing.assert_array_equal(answer.as_numpy("y"), wanted)
                    count += not loading.done()
                return count

            loads = asyncio.gather(*(asyncio.to_thread(load, server.client(), models, "double", n) for n in names))
            during.extend(await asyncio.gather(*(ask_while(loads) for _ in range(4))))
            await loads

    asyncio.run(run())
    assert all(count > 0 for count in during), "a caller waited until everything was loaded"
    for name in names:
        assert client.is_model_ready(name)
        client.unload_model(name)
