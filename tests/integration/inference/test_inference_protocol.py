"""Unmodified tritonclient against a real server and real workers."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference_world import Server, floats, load, steps, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, shared_memory

pytestmark = pytest.mark.parametrize("server", [1, 2], indirect=True, ids=["alone", "fronts"])


def refused(code: str, *words: str) -> Any:
    """Expects a status and words in its message."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(InferenceServerException, match=rf"(?s)\[StatusCode\.{code}\]{pattern}")


def test_the_server_says_what_it_is(server: Server, client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata().name == "enginehouse"
    assert client.is_model_ready("double") and client.is_model_ready("double", "1")
    metadata = client.get_model_metadata("addsub")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "INT32", [-1, 3]),
        ("b", "INT32", [-1, 3]),
    ]
    config = client.get_model_config("double").config
    assert (config.max_batch_size, list(config.input[0].dims), config.instance_group[0].count) == (8, [4], 1)
    assert client.get_model_config("scalar").config.max_batch_size == 0
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "double"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_rows_come_back_as_they_went(client: Any) -> None:
    sent = floats(3)
    result = client.infer("double", [tensor("x", sent, "FP32")], request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * sent)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "double", "1")


def test_a_request_larger_than_the_largest_batch_is_split_and_rejoined(client: Any) -> None:
    sent = floats(21)
    np.testing.assert_array_equal(client.infer("double", [tensor("x", sent, "FP32")]).as_numpy("y"), 2 * sent)
    texts = np.array([[f"row {i}".encode(), b"\xc3\xa9" * i] for i in range(19)], dtype=object)
    np.testing.assert_array_equal(client.infer("text", [tensor("s", texts, "BYTES")]).as_numpy("t"), texts)


def test_text_that_a_backend_cannot_take_is_the_clients_error(client: Any) -> None:
    texts = np.array([[b"\xff\xfe", b"x"]], dtype=object)
    with refused("INVALID_ARGUMENT", "UTF-8"):
        client.infer("text", [tensor("s", texts, "BYTES")])


def test_empty_tensors(client: Any) -> None:
    answer = client.infer("identity", [tensor("x", np.zeros((2, 0), np.float32), "FP32")])
    assert list(answer.get_response().outputs[0].shape) == [2, 0]


def test_several_inputs_and_chosen_outputs(client: Any) -> None:
    a, b = np.array([[1, 2, 3]], np.int32), np.array([[10, 20, 30]], np.int32)
    inputs = [tensor("b", b, "INT32"), tensor("a", a, "INT32")]
    result = client.infer("addsub", inputs, outputs=[triton.InferRequestedOutput("difference")])
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    assert result.as_numpy("sum") is None
    both = client.infer("addsub", inputs)
    np.testing.assert_array_equal(both.as_numpy("sum"), a + b)


def test_half_precision_and_rank_three(client: Any) -> None:
    sent = np.arange(12, dtype=np.float16).reshape(2, 2, 3)
    np.testing.assert_array_equal(client.infer("half", [tensor("x", sent, "FP16")]).as_numpy("y"), sent)


def test_a_model_without_a_batch_and_with_a_scalar(client: Any) -> None:
    inputs = [tensor("x", np.array(2, np.float32), "FP32"), tensor("y", np.arange(5, dtype=np.float32), "FP32")]
    np.testing.assert_array_equal(client.infer("scalar", inputs).as_numpy("z"), np.arange(5) + 2)


def test_large_tensors(client: Any) -> None:
    sent = np.random.default_rng(0).random((4, 150_000), dtype=np.float32)
    np.testing.assert_array_equal(client.infer("identity", [tensor("x", sent, "FP32")]).as_numpy("y"), sent)


def test_many_clients_each_get_their_own_rows(server: Server, client: Any) -> None:
    def one(number: int) -> None:
        sent = floats(1 + number % 5, start=100 * number)
        result = clients[number % 4].infer("double", [tensor("x", sent, "FP32")])
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * sent)

    clients = [server.client() for _ in range(4)]
    before = client.get_inference_statistics("double").model_stats[0]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))
    after = client.get_inference_statistics("double").model_stats[0]
    assert after.inference_stats.success.count - before.inference_stats.success.count == 200
    assert after.inference_count - before.inference_count == 600
    assert after.execution_count - before.execution_count <= 200


def test_requests_that_wait_together_run_together(server: Server, client: Any, models: Path) -> None:
    load(client, models, "double", "patient", max_queue_delay_us=60_000_000, preferred_batch_sizes=[8])

    async def both() -> None:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:
            answers = await asyncio.gather(
                *(asynchronous.infer("patient", [tensor("x", floats(4, start=s), "FP32")]) for s in (0, 50))
            )
        for start, answer in zip((0, 50), answers, strict=True):
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * floats(4, start=start))

    asyncio.run(both())
    statistics = client.get_inference_statistics("patient").model_stats[0]
    assert [(b.batch_size, b.compute_infer.count) for b in statistics.batch_stats] == [(8, 1)]
    assert statistics.inference_stats.queue.count == 2
    assert statistics.inference_stats.compute_infer.ns > 0
    client.unload_model("patient")


def test_typed_contents(server: Server) -> None:
    request = service_pb2.ModelInferRequest(model_name="addsub")
    for name in "ab":
        item = request.inputs.add(name=name, datatype="INT32", shape=[1, 3])
        item.contents.int_contents.extend([1, 2, 3])
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request)
        assert np.frombuffer(response.raw_output_contents[0], np.int32).tolist() == [2, 4, 6]
        text = service_pb2.ModelInferRequest(model_name="text")
        text.inputs.add(name="s", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"bc"])
        assert stub.ModelInfer(text).raw_output_contents[0] == b"\1\0\0\0a\2\0\0\0bc"
        text.inputs[0].contents.bytes_contents.append(b"one too many")
        with pytest.raises(grpc.RpcError, match=r"'s': 3 elements in bytes_contents: expected 2"):
            stub.ModelInfer(text)


def test_classification(client: Any) -> None:
    sent = np.array([[1, 4, 3, 4], [9, 0, 0, -1]], np.float32)
    output = triton.InferRequestedOutput("y", class_count=2)
    result = client.infer("double", [tensor("x", sent, "FP32")], outputs=[output]).as_numpy("y")
    assert result.tolist() == [[b"8.000000:1", b"8.000000:3"], [b"18.000000:0", b"0.000000:1"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [2, 5]}, ["'x'", r"\[2, 5\]", r"\[-1, 4\]"]),
        ({"shape": [2, 4, 1]}, ["'x'", r"\[2, 4, 1\]"]),
        ({"shape": [0, 4]}, ["'x'", r"\[0, 4\]", "at least 1"]),
        ({"shape": [-1, 4]}, ["'x'", r"\[-1, 4\]"]),
        ({"datatype": "FP64"}, ["'x'", "FP64", "FP32"]),
        ({"raw": b"123"}, ["'x'", "3 bytes", "expected 32"]),
        ({"input": "z"}, ["'z'", "expected 'x'"]),
        ({"more": "x"}, ["'x'", "twice"]),
        ({"output": "w"}, ["'w'", "expected 'y'"]),
        ({"raws": 2}, ["2 raw_input_contents", "expected 1"]),
        ({"raws": 0}, ["'x'", "no data"]),
        ({"version": "two"}, ["'two'"]),
    ],
)
def test_wrong_requests_say_what_was_wrong_and_what_was_expected(
    server: Server, change: dict[str, Any], words: list[str]
) -> None:
    request = service_pb2.ModelInferRequest(model_name="double", model_version=change.get("version", ""))
    shape = change.get("shape", [2, 4])
    request.inputs.add(name=change.get("input", "x"), datatype=change.get("datatype", "FP32"), shape=shape)
    if "more" in change:
        request.inputs.add(name=change["more"], datatype="FP32", shape=shape)
    if "output" in change:
        request.outputs.add(name=change["output"])
    request.raw_input_contents.extend([change.get("raw", bytes(32))] * change.get("raws", len(request.inputs)))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="(?s)" + "".join(f"(?=.*{w})" for w in words)) as caught:
            stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_missing_inputs_and_different_batches(client: Any) -> None:
    a = tensor("a", np.zeros((1, 3), np.int32), "INT32")
    with refused("INVALID_ARGUMENT", "'b' is missing"):
        client.infer("addsub", [a])
    with refused("INVALID_ARGUMENT", "different batch sizes", "'a' 1", "'b' 2"):
        client.infer("addsub", [a, tensor("b", np.zeros((2, 3), np.int32), "INT32")])


def test_unknown_models_and_versions(client: Any) -> None:
    x = tensor("x", floats(1), "FP32")
    with refused("NOT_FOUND", "'nothing'", "'double'"):
        client.infer("nothing", [x])
    with refused("NOT_FOUND", "no version 9", "has 1"):
        client.infer("double", [x], model_version="9")
    with refused("NOT_FOUND"):
        client.get_model_metadata("nothing")
    with refused("NOT_FOUND"):
        client.is_model_ready("nothing")
    with refused("NOT_FOUND"):
        client.get_inference_statistics("nothing")


def test_bytes_that_are_no_message_are_refused(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff\xff\xff", b"\x0a\xff\xff\x7f" + bytes(100), b"\x3a\xff\xff\xff\x7f" + bytes(20_000)):
            with pytest.raises(grpc.RpcError) as caught:
                call(data)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_asynchronous_client(server: Server) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:
            assert await asynchronous.is_server_ready()
            results = await asyncio.gather(
                *(asynchronous.infer("double", [tensor("x", floats(2, start=i), "FP32")]) for i in range(50))
            )
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * floats(2, start=number))

    asyncio.run(run())


def test_a_stream_answers_in_order_and_outlives_errors(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    # The first takes longest, and the second is wrong.
    client.async_stream_infer("slow", [steps(100_000)], request_id="0")
    client.async_stream_infer("nothing", [steps(1)], request_id="1")
    for number in range(2, 30):
        sent = tensor("x", floats(1, start=number), "FP32")
        client.async_stream_infer("double", [sent], request_id=str(number), enable_empty_final_response=number == 2)
    received = [answers.get(timeout=60) for _ in range(30)]
    client.stop_stream()
    result, error = received[0]
    assert error is None and result.get_response().id == "0"
    assert received[1][1] is not None and "nothing" in str(received[1][1])
    for number, (result, error) in enumerate(received[2:], start=2):
        assert error is None and result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * floats(1, start=number))
    assert received[2][0].get_response().parameters["triton_final_response"].bool_param


def test_the_asynchronous_clients_stream(server: Server) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(20):
            model = "nothing" if number == 7 else "double"
            inputs = [tensor("x", floats(1, start=number), "FP32")]
            yield {"model_name": model, "inputs": inputs, "request_id": str(number)}

    async def run() -> None:
        async with triton_aio.InferenceServerClient(server.address) as asynchronous:
            number = 0
            async for result, error in asynchronous.stream_infer(requests()):
                assert (error is not None) == (number == 7), error
                if error is None:
                    assert result.get_response().id == str(number)
                    np.testing.assert_array_equal(result.as_numpy("y"), 2 * floats(1, start=number))
                number += 1
            assert number == 20

    asyncio.run(run())


def test_shared_memory_in_and_out(client: Any) -> None:
    sent = floats(3)
    into = shared_memory.create_shared_memory_region("in", "/enginehouse-test-in", 1024)
    out = shared_memory.create_shared_memory_region("out", "/enginehouse-test-out", 1024)
    try:
        shared_memory.set_shared_memory_region(into, [sent], offset=64)
        client.register_system_shared_memory("in", "/enginehouse-test-in", 1024)
        client.register_system_shared_memory("out", "/enginehouse-test-out", 512, offset=512)
        with refused("ALREADY_EXISTS", "'in'"):
            client.register_system_shared_memory("in", "/enginehouse-test-in", 1024)
        regions = client.get_system_shared_memory_status().regions
        assert {n: (r.key, r.offset, r.byte_size) for n, r in regions.items()} == {
            "in": ("/enginehouse-test-in", 0, 1024),
            "out": ("/enginehouse-test-out", 512, 512),
        }
        x = triton.InferInput("x", [3, 4], "FP32")
        x.set_shared_memory("in", 48, offset=64)
        y = triton.InferRequestedOutput("y")
        y.set_shared_memory("out", 64, offset=128)
        response = client.infer("double", [x], outputs=[y]).get_response()
        assert list(response.raw_output_contents) == [b""]
        parameters = response.outputs[0].parameters
        assert parameters["shared_memory_region"].string_param == "out"
        assert parameters["shared_memory_byte_size"].int64_param == 48
        received = shared_memory.get_contents_as_numpy(out, np.float32, [3, 4], offset=512 + 128)
        np.testing.assert_array_equal(received, 2 * sent)
        # In, and the answer over the wire; more rows than a batch holds.
        many = floats(20)
        shared_memory.set_shared_memory_region(into, [many])
        x = triton.InferInput("x", [20, 4], "FP32")
        x.set_shared_memory("in", 320)
        np.testing.assert_array_equal(client.infer("double", [x]).as_numpy("y"), 2 * many)
        y.set_shared_memory("out", 40)
        with refused("INVALID_ARGUMENT", "'y'", "320 bytes", "names 40"):
            client.infer("double", [x], outputs=[y])
        x.set_shared_memory("in", 320, offset=1000)
        with refused("INVALID_ARGUMENT", "'x'", "which has 1024"):
            client.infer("double", [x])
        client.unregister_system_shared_memory("in")
        with refused("NOT_FOUND", "'in'"):
            client.infer("double", [x])
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        with refused("NOT_FOUND", "no-such-object"):
            client.register_system_shared_memory("in", "/no-such-object", 8)
        with refused("INVALID_ARGUMENT", "1024 bytes", "expected at least 4096"):
            client.register_system_shared_memory("in", "/enginehouse-test-in", 4096)
        with refused("INVALID_ARGUMENT", "key"):
            client.register_system_shared_memory("in", "/../etc/passwd", 8)
    finally:
        for handle in (into, out):
            shared_memory.destroy_shared_memory_region(handle)


def test_what_is_not_here_says_so(client: Any) -> None:
    with refused("FAILED_PRECONDITION", "no GPU"):
        client.register_cuda_shared_memory("gpu", b"aGFuZGxl", 0, 64)
    client.unregister_cuda_shared_memory()
    assert not client.get_cuda_shared_memory_status().regions


def test_trace_and_log_settings_are_told_and_changes_that_cannot_be_are_refused(client: Any) -> None:
    def traces(**settings: Any) -> dict[str, list[str]]:
        answer = client.update_trace_settings(settings=settings)
        return {key: list(setting.value) for key, setting in answer.settings.items()}

    untouched = {"trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"], "trace_mode": ["opentelemetry"]}
    assert traces() == traces(trace_level=["OFF"], trace_count=["-1"]) == untouched
    assert {k: list(v.value) for k, v in client.get_trace_settings("double").settings.items()} == untouched
    assert traces(trace_rate="10")["trace_rate"] == ["10"]
    assert traces(trace_rate=None) == untouched
    with refused("FAILED_PRECONDITION", "ENGINEHOUSE_TRACING=otlp"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "7"})
    for wrong in ({"trace_level": ["TENSORS"]}, {"trace_level": ["OFF", "TIMESTAMPS"]}, {"trace_rate": "0"}):
        with refused("INVALID_ARGUMENT", "expected"):
            client.update_trace_settings(settings=wrong)
    for wrong in ({"trace_file": "/tmp/x"}, {"trace_count": "5"}):
        with refused("UNIMPLEMENTED", "trace_"):
            client.update_trace_settings(settings=wrong)
    with refused("UNIMPLEMENTED", "'double'"):
        client.update_trace_settings("double", {"trace_rate": "5"})
    with refused("NOT_FOUND", "'nothing'"):
        client.get_trace_settings("nothing")
    assert traces() == untouched

    logs = client.get_log_settings().settings
    assert (logs["log_info"].bool_param, logs["log_verbose_level"].uint32_param) == (True, 0)
    assert logs["log_format"].string_param == "json"
    client.update_log_settings({"log_info": True, "log_error": None})
    with refused("UNIMPLEMENTED", "ENGINEHOUSE_LOG_LEVEL"):
        client.update_log_settings({"log_verbose_level": 1})
    with refused("INVALID_ARGUMENT", "'log_colour'"):
        client.update_log_settings({"log_colour": True})


def test_every_method_of_the_service_is_answered(server: Server) -> None:
    """With an empty request: by an answer, or by a status that is not gRPC's own for a method that is not there."""
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert len(methods) >= 20
    with grpc.insecure_channel(server.address) as channel:
        for method in methods:
            path = f"/inference.GRPCInferenceService/{method.name}"
            if method.client_streaming:
                assert list(channel.stream_stream(path)(iter([]))) == []
                continue
            try:
                channel.unary_unary(path)(b"", timeout=30)
            except grpc.RpcError as error:
                known = (
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
                assert error.code() in known, (method.name, error.details())
                assert "internal error" not in error.details()


def test_health_is_told_of_the_server_and_of_each_model(server: Server, client: Any, models: Path) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status)

        for name in ("", "inference.GRPCInferenceService", "double"):
            assert status(name) == health_pb2.HealthCheckResponse.SERVING, name
        with pytest.raises(grpc.RpcError) as unknown:
            status("nothing")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest(service="healthy"), timeout=60)
        seen = (int(answer.status) for answer in watched)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        load(client, models, "double", "healthy")
        assert serving in seen
        client.unload_model("healthy")
        assert next(seen) == not_serving
        watched.cancel()


def test_a_stream_ends_with_a_status_where_the_client_asks_for_it(server: Server) -> None:
    wrong = service_pb2.ModelInferRequest(model_name="nothing", id="1")
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        tolerant = list(stub.ModelStreamInfer(iter([wrong, wrong]), timeout=30))
        assert [answer.infer_response.id for answer in tolerant] == ["1", "1"]
        with pytest.raises(grpc.RpcError) as ended:
            list(stub.ModelStreamInfer(iter([wrong]), timeout=30, metadata=(("triton_grpc_error", "true"),)))
    assert ended.value.code() is grpc.StatusCode.NOT_FOUND and "'nothing'" in ended.value.details()


def test_models_come_and_go_by_hand(client: Any, models: Path) -> None:
    def states() -> dict[str, tuple[str, str]]:
        index = client.get_model_repository_index()
        return {m.name: (m.state, m.reason) for m in index.models}

    load(client, models, "triple", "changing")
    sent = floats(2)
    assert states()["changing"] == ("READY", "")
    np.testing.assert_array_equal(client.infer("changing", [tensor("x", sent, "FP32")]).as_numpy("y"), 3 * sent)
    load(client, models, "double", "changing")
    np.testing.assert_array_equal(client.infer("changing", [tensor("x", sent, "FP32")]).as_numpy("y"), 2 * sent)
    # A load that fails leaves what worked, and says why.
    with refused("INVALID_ARGUMENT", "ONNX Runtime cannot load"):
        load(client, models, "broken", "changing")
    state, reason = states()["changing"]
    assert state == "READY" and "ONNX Runtime cannot load" in reason
    np.testing.assert_array_equal(client.infer("changing", [tensor("x", sent, "FP32")]).as_numpy("y"), 2 * sent)
    client.unload_model("changing")
    assert "changing" not in states()
    with refused("NOT_FOUND", "'changing'"):
        client.infer("changing", [tensor("x", sent, "FP32")])
    with refused("NOT_FOUND", "changing"):
        client.unload_model("changing")
    with refused("NOT_FOUND", "no serving configuration"):
        client.load_model("changing")


@pytest.mark.parametrize(("model", "words"), [("broken", "ONNX Runtime cannot load"), ("alien", "abacus")])
def test_a_load_that_fails_is_seen(client: Any, models: Path, model: str, words: str) -> None:
    with refused("INVALID_ARGUMENT", words):
        load(client, models, model)
    found = next(m for m in client.get_model_repository_index().models if m.name == model)
    assert found.state == "UNAVAILABLE" and words in found.reason
    assert not client.is_model_ready(model)
    with refused("UNAVAILABLE", words):
        client.infer(model, [tensor("x", floats(1), "FP32")])
    client.unload_model(model)


def test_load_configurations_are_checked(client: Any, models: Path) -> None:
    with refused("INVALID_ARGUMENT", "instanses"):
        load(client, models, "double", instanses=2)
    with refused("INVALID_ARGUMENT", "bad instances"):
        load(client, models, "double", instances=0)
    with refused("INVALID_ARGUMENT", "not JSON"):
        client.load_model("double", config="{")
    with refused("INVALID_ARGUMENT", "not an engine's directory"):
        load(client, models, "nowhere")
    with refused("UNIMPLEMENTED", "file:"):
        client.load_model("double", config="{}", files={"file:1/model.onnx": b""})
    client.unload_model("nowhere")
    assert client.is_model_ready("double")


def test_no_joining_when_batching_is_off(client: Any, models: Path) -> None:
    load(client, models, "double", "alone", max_batch_size=1, instances=2)
    sent = floats(5)
    np.testing.assert_array_equal(client.infer("alone", [tensor("x", sent, "FP32")]).as_numpy("y"), 2 * sent)
    assert not client.get_model_config("alone").config.HasField("dynamic_batching")
    client.unload_model("alone")
