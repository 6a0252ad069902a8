"""What a caller must be allowed: the model that a request names, however it came."""

from __future__ import annotations

import grpc.aio
import pytest
from enginehouse_inference.app import InferenceApp
from enginehouse_inference.protocol.wire import model_name
from enginehouse_inference.service.resources import resource_function
from enginehouse_inference.settings import InferenceSettings
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from enginehouse.errors import InvalidArgumentError, PermissionDeniedError
from enginehouse.rpc.authorization import Principal
from enginehouse.workers.environments import WorkerEnvironments

SERVICE = "/inference.GRPCInferenceService"
resource = resource_function("p")


@given(st.text(max_size=20), st.text(max_size=5), st.lists(st.binary(max_size=40), max_size=3), st.integers(0, 9))
def test_the_model_of_an_inference_is_what_protobuf_reads(
    name: str, identifier: str, contents: list[bytes], cut: int
) -> None:
    request = service_pb2.ModelInferRequest(model_name=name, id=identifier, raw_input_contents=contents)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    data = request.SerializeToString()
    assert model_name(data) == name
    # In any order, and the last of several counts.
    other = service_pb2.ModelInferRequest(model_name="other").SerializeToString()
    for pieces in (other + data, data + other):
        assert model_name(pieces) == service_pb2.ModelInferRequest.FromString(pieces).model_name


@given(st.binary(max_size=60))
def test_any_bytes_name_what_protobuf_reads_or_are_refused(data: bytes) -> None:
    try:
        name = model_name(data)
    except InvalidArgumentError:
        return
    try:
        assert service_pb2.ModelInferRequest.FromString(data).model_name == name
    except Exception as error:
        assert type(error).__name__ == "DecodeError"


def test_every_call_names_a_model_or_the_project() -> None:
    model = "projects/p/servingConfigs/m"
    for method, request in {
        "ModelInfer": service_pb2.ModelInferRequest(model_name="m").SerializeToString(),
        "ModelStreamInfer": service_pb2.ModelInferRequest(model_name="m").SerializeToString(),
        "ModelReady": service_pb2.ModelReadyRequest(name="m"),
        "ModelMetadata": service_pb2.ModelMetadataRequest(name="m"),
        "ModelConfig": service_pb2.ModelConfigRequest(name="m"),
        "ModelStatistics": service_pb2.ModelStatisticsRequest(name="m"),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="m"),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="m"),
    }.items():
        assert resource(f"{SERVICE}/{method}", request) == model, method
    for method, request in {
        "ModelInfer": b"",
        "ModelStatistics": service_pb2.ModelStatisticsRequest(),
        "ServerReady": service_pb2.ServerReadyRequest(),
        "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="region"),
    }.items():
        assert resource(f"{SERVICE}/{method}", request) == "projects/p", method


class OnlyOpen:
    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        if resource != "projects/default/servingConfigs/open":
            raise PermissionDeniedError(f"{principal.name} may not use {resource}")


async def test_inference_is_authorized_by_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("app")
    settings = InferenceSettings(port=0, cache_dir=folder)
    app = InferenceApp(settings, WorkerEnvironments(folder, {}), OnlyOpen())
    port = await app.server.start()
    client = InferenceServerClient(f"127.0.0.1:{port}")
    tensor = InferInput("x", [1], "FP32")
    try:
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            await client.infer("open", [tensor])
        with pytest.raises(InferenceServerException, match=r"PERMISSION_DENIED.*servingConfigs/shut"):
            await client.infer("shut", [tensor])

        async def requests():  # type: ignore[no-untyped-def]
            for model in ("open", "shut"):
                yield {"model_name": model, "inputs": [tensor]}

        answers = client.stream_infer(requests())
        _, error = await answers.__anext__()
        assert "no model 'open'" in str(error)
        with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
            await answers.__anext__()
    finally:
        await client.close()
        await app.server.stop()
        await app.drain()
