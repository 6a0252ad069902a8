"""Small real servers of the generated servicers, to test the SDK's side of every contract."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from tritonclient.grpc import service_pb2, service_pb2_grpc

from enginehouse.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    EnginehouseError,
    NotFoundError,
    OutOfRangeError,
)
from enginehouse.rpc.status import to_proto, trailing_metadata
from enginehouse.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    engines_pb2,
    engines_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    optimizer_pb2,
    optimizer_pb2_grpc,
    serving_pb2,
    serving_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)

PROJECT = "projects/default"


async def fail(context: Any, error: EnginehouseError) -> None:
    await context.abort(error.code, error.message, trailing_metadata(error))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Blobs(blobs_pb2_grpc.BlobsServicer):
    """Keeps blobs in memory. `break_after` chunks it breaks an upload or a download, once for each entry."""

    def __init__(self) -> None:
        self.whole: dict[str, bytes] = {}
        self.partial: dict[str, bytearray] = {}
        self.break_after: list[int] = []
        self.offsets: list[int] = []

    def add(self, data: bytes) -> str:
        self.whole[digest(data)] = data
        return digest(data)

    async def FindBlob(self, request: Any, context: Any) -> Any:
        if request.digest in self.whole:
            size = len(self.whole[request.digest])
            return blobs_pb2.FindBlobResponse(complete=True, committed_bytes=size)
        return blobs_pb2.FindBlobResponse(committed_bytes=len(self.partial.get(request.digest, b"")))

    async def WriteBlob(self, requests: Any, context: Any) -> Any:
        limit = self.break_after.pop(0) if self.break_after else None
        count, name, size = 0, "", 0
        async for request in requests:
            if not name:
                name, size = request.digest, request.size_bytes
                self.offsets.append(request.offset)
                if request.offset != len(self.partial.get(name, b"")):
                    await fail(context, OutOfRangeError("wrong offset"))
            if zlib.crc32(request.data) != request.crc32:
                await fail(context, DataLossError("crc"))
            self.partial.setdefault(name, bytearray()).extend(request.data)
            count += 1
            if limit is not None and count >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broke")
        data = bytes(self.partial.pop(name))
        assert len(data) == size and digest(data) == name
        self.whole[name] = data
        return blobs_pb2.WriteBlobResponse(committed_bytes=size, complete=True)

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.digest not in self.whole:
            await fail(context, NotFoundError("no such blob"))
        data = self.whole[request.digest]
        limit = self.break_after.pop(0) if self.break_after else None
        self.offsets.append(request.offset)
        for count, start in enumerate(range(request.offset, len(data), 1000)):
            if limit is not None and count >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broke")
            chunk = data[start : start + 1000]
            yield blobs_pb2.ReadBlobResponse(offset=start, data=chunk, crc32=zlib.crc32(chunk))


class Models(models_pb2_grpc.ModelsServicer):
    """Registers models and datasets in memory, two a page."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}

    async def CreateModel(self, request: Any, context: Any) -> Any:
        name = f"{request.parent}/models/{request.model_id}"
        model = models_pb2.Model()
        model.CopyFrom(request.model)
        model.name = name
        model.digest = model.blob or digest(model.zoo.SerializeToString())
        old = self.models.get(name)
        if old is not None and old.digest != model.digest and not request.allow_replace:
            await fail(context, AlreadyExistsError(f"{name} exists", details={"digest": old.digest}))
        self.models[name] = model
        return model

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name not in self.models:
            await fail(context, NotFoundError(f"there is no {request.name}"))
        return self.models[request.name]

    async def ListModels(self, request: Any, context: Any) -> Any:
        names = sorted(self.models)
        start = int(request.page_token or 0)
        token = str(start + 2) if start + 2 < len(names) else ""
        page = [self.models[name] for name in names[start : start + 2]]
        return models_pb2.ListModelsResponse(models=page, next_page_token=token)

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        del self.models[request.name]
        return empty_pb2.Empty()

    async def CreateDataset(self, request: Any, context: Any) -> Any:
        dataset = models_pb2.Dataset()
        dataset.CopyFrom(request.dataset)
        dataset.name = f"{request.parent}/datasets/{request.dataset_id}"
        self.datasets[dataset.name] = dataset
        return dataset

    async def GetDataset(self, request: Any, context: Any) -> Any:
        if request.name not in self.datasets:
            await fail(context, NotFoundError(f"there is no {request.name}"))
        return self.datasets[request.name]

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        return models_pb2.ListDatasetsResponse(datasets=self.datasets.values())


class Engines(engines_pb2_grpc.EnginesServicer):
    def __init__(self) -> None:
        self.engines: dict[str, Any] = {}
        self.aliases: dict[str, Any] = {}

    async def GetEngine(self, request: Any, context: Any) -> Any:
        if request.name not in self.engines:
            await fail(context, NotFoundError(f"there is no {request.name}"))
        return self.engines[request.name]

    async def ListEngines(self, request: Any, context: Any) -> Any:
        wanted = (("backend", request.backend), ("model", request.model), ("precision", request.precision))
        found = [
            engine
            for engine in self.engines.values()
            if all(not value or value == getattr(engine, field) for field, value in wanted)
        ]
        return engines_pb2.ListEnginesResponse(engines=found)

    async def PinEngine(self, request: Any, context: Any) -> Any:
        engine = await self.GetEngine(request, context)
        engine.pinned = request.pinned
        return engine

    async def SetAlias(self, request: Any, context: Any) -> Any:
        for engine in self.engines.values():
            alias = request.alias.name.rsplit("/", 1)[-1]
            engine.aliases[:] = [
                *set(engine.aliases) - {alias},
                *([alias] if engine.name == request.alias.engine else []),
            ]
        self.aliases[request.alias.name] = request.alias
        return request.alias

    async def GetAlias(self, request: Any, context: Any) -> Any:
        if request.name not in self.aliases:
            await fail(context, NotFoundError(f"there is no {request.name}"))
        return self.aliases[request.name]

    async def ListAliases(self, request: Any, context: Any) -> Any:
        return engines_pb2.ListAliasesResponse(aliases=list(self.aliases.values()))

    async def DeleteAlias(self, request: Any, context: Any) -> Any:
        del self.aliases[request.name]
        return empty_pb2.Empty()


class Optimizer(optimizer_pb2_grpc.OptimizerServicer, operations_pb2_grpc.OperationsServicer):
    """One job with scripted events. `break_at` are sequences after which a watch breaks, once each."""

    name = f"{PROJECT}/operations/job-1"

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.retries: list[Any] = []
        self.filters: list[str] = []
        self.watches: list[int] = []
        self.break_at: list[int] = []
        self.hang = False
        self.cancelled = False
        self.error: EnginehouseError | None = None
        self.engines: list[Any] = []
        self.unavailable = 0

    def operation(self, done: bool) -> Any:
        state = optimizer_pb2.JOB_STATE_RUNNING
        if done:
            state = optimizer_pb2.JOB_STATE_FAILED if self.error else optimizer_pb2.JOB_STATE_SUCCEEDED
        operation = operations_pb2.Operation(name=self.name, done=done)
        stage = optimizer_pb2.Stage(
            name="freeze", state=optimizer_pb2.STAGE_STATE_REUSED, seconds=12.5, peak_memory_bytes=3 << 30
        )
        metadata = optimizer_pb2.OptimizeMetadata(model=f"{PROJECT}/models/m", state=state, stages=[stage])
        operation.metadata.Pack(metadata)
        if done and self.error is not None:
            operation.error.CopyFrom(to_proto(self.error))
        elif done:
            operation.response.Pack(optimizer_pb2.OptimizeResponse(engines=self.engines))
        return operation

    async def Optimize(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.unavailable:
            self.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
        return self.operation(False)

    async def RetryOptimization(self, request: Any, context: Any) -> Any:
        self.retries.append(request)
        return self.operation(False)

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.watches.append(request.after_sequence)
        for sequence in range(request.after_sequence + 1, 6):
            event = optimizer_pb2.OperationEvent(sequence=sequence, state=optimizer_pb2.JOB_STATE_RUNNING)
            if sequence < 5:
                event.stage.name, event.stage.fraction = "freeze", sequence / 4
            elif self.hang:
                import asyncio

                await asyncio.sleep(60)
            else:
                event.operation.CopyFrom(self.operation(True))
            yield event
            if sequence in self.break_at:
                self.break_at.remove(sequence)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broke")

    async def GetStageLog(self, request: Any, context: Any) -> Any:
        return optimizer_pb2.StageLog(stage=request.stage, text=f"log of {request.stage}")

    async def GetOperation(self, request: Any, context: Any) -> Any:
        if request.name != self.name:
            await fail(context, NotFoundError(f"there is no {request.name}"))
        return self.operation(True)

    async def ListOperations(self, request: Any, context: Any) -> Any:
        self.filters.append(request.filter)
        return operations_pb2.ListOperationsResponse(operations=[self.operation(True)])

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        self.cancelled = True
        return empty_pb2.Empty()


class ServingConfigs(serving_pb2_grpc.ServingConfigsServicer):
    """Desired state with etags. `races` edits of others come between a read and our write."""

    def __init__(self) -> None:
        self.configs: dict[str, Any] = {}
        self.races = 0
        self.updates = 0

    async def GetServingConfig(self, request: Any, context: Any) -> Any:
        if request.name not in self.configs:
            await fail(context, NotFoundError("not served"))
        return self.configs[request.name]

    async def ListServingConfigs(self, request: Any, context: Any) -> Any:
        return serving_pb2.ListServingConfigsResponse(serving_configs=list(self.configs.values()))

    async def UpdateServingConfig(self, request: Any, context: Any) -> Any:
        self.updates += 1
        config = request.serving_config
        old = self.configs.get(config.name)
        if self.races:
            self.races -= 1
            other = serving_pb2.ServingConfig(name=config.name, etag=f"race-{self.races}")
            other.versions.add(version=7, engine=f"{PROJECT}/engines/other")
            self.configs[config.name] = other
            await fail(context, AbortedError("etag"))
        if config.etag != (old.etag if old is not None else ""):
            await fail(context, AbortedError("etag"))
        stored = serving_pb2.ServingConfig()
        stored.CopyFrom(config)
        stored.generation = (old.generation if old is not None else 0) + 1
        stored.etag = f"e{stored.generation}"
        self.configs[config.name] = stored
        return stored

    async def DeleteServingConfig(self, request: Any, context: Any) -> Any:
        if request.name not in self.configs:
            await fail(context, NotFoundError("not served"))
        del self.configs[request.name]
        return empty_pb2.Empty()


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves "double": FP32 [-1, 3] in `x`, twice it in `y`; ready when its configuration is there."""

    def __init__(self, serving: ServingConfigs) -> None:
        self.serving = serving
        self.broken: dict[tuple[str, str], str] = {}
        self.metadata_calls = 0
        self.shape = [-1, 3]
        self.reverse_stream = False

    def _versions(self, name: str) -> list[str]:
        config = self.serving.configs.get(f"{PROJECT}/servingConfigs/{name}")
        return [str(v.version) for v in config.versions] if config is not None else []

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        versions = [v for v in self._versions(request.name) if (request.name, v) not in self.broken]
        ready = request.version in versions if request.version else bool(versions)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        for (name, version), reason in self.broken.items():
            if version in self._versions(name):
                response.models.add(name=name, version=version, state="UNAVAILABLE", reason=reason)
        return response

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.metadata_calls += 1
        if request.name != "double":
            await fail(context, NotFoundError(f"no model {request.name}"))
        response = service_pb2.ModelMetadataResponse(name="double", versions=["1"], platform="onnxruntime")
        response.inputs.add(name="x", datatype="FP32", shape=self.shape)
        response.outputs.add(name="y", datatype="FP32", shape=self.shape)
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        import numpy as np

        x = np.frombuffer(request.raw_input_contents[0], np.float32)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        response.raw_output_contents.append((2 * x).tobytes())
        response.parameters["cached"].bool_param = False
        return response

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        held: list[Any] = []
        async for request in requests:
            held.append(service_pb2.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context)))
            if not self.reverse_stream or len(held) == 4:
                for response in reversed(held):
                    yield response
                held.clear()


class Telemetry(telemetry_pb2_grpc.TelemetryServicer):
    """`break_after` samples it ends each stream as a server does whose connections grow old."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.break_after: int | None = None

    def sample(self, sequence: int) -> Any:
        sample = telemetry_pb2.Sample(node=f"{PROJECT}/nodes/here", sequence=sequence)
        sample.time.FromSeconds(1_700_000_000 + sequence)
        gpu = sample.gpus.add(uuid="GPU-1", index=0, state=telemetry_pb2.DEVICE_STATE_OK)
        gpu.power_draw_watts, gpu.utilization_gpu_percent = 120.5, 0.0
        gpu.processes.add(pid=7, kind="compute")
        sample.host.cpu_utilization_percent = 12.0
        return sample

    async def ListDevices(self, request: Any, context: Any) -> Any:
        return telemetry_pb2.ListDevicesResponse(message="NVML is not installed")

    async def GetSnapshot(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return self.sample(9)

    async def StreamSamples(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        for sequence in range(1, 1000):
            yield telemetry_pb2.StreamSamplesResponse(sample=self.sample(sequence), skipped=sequence - 1)
            if sequence == self.break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "max connection age")

    async def ListSamples(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        start = int(request.page_token or 0)
        samples = [self.sample(start), self.sample(start + 1)]
        return telemetry_pb2.ListSamplesResponse(samples=samples, next_page_token=str(start + 2) if start < 4 else "")


class Servers:
    """All of them on one port."""

    def __init__(self) -> None:
        self.blobs = Blobs()
        self.models = Models()
        self.engines = Engines()
        self.optimizer = Optimizer()
        self.serving = ServingConfigs()
        self.inference = Inference(self.serving)
        self.telemetry = Telemetry()
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        server = self._server = grpc.aio.server()
        blobs_pb2_grpc.add_BlobsServicer_to_server(self.blobs, server)
        models_pb2_grpc.add_ModelsServicer_to_server(self.models, server)
        engines_pb2_grpc.add_EnginesServicer_to_server(self.engines, server)
        optimizer_pb2_grpc.add_OptimizerServicer_to_server(self.optimizer, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self.optimizer, server)
        serving_pb2_grpc.add_ServingConfigsServicer_to_server(self.serving, server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.inference, server)
        telemetry_pb2_grpc.add_TelemetryServicer_to_server(self.telemetry, server)
        self.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
