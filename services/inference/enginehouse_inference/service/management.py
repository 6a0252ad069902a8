"""Every method but inference: health, metadata, configuration, statistics, repository, shared memory, settings."""

# ruff: noqa: N802 - the protocol's names

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from tritonclient.grpc import service_pb2

from enginehouse.errors import (
    InvalidArgumentError,
    UnavailableError,
    UnimplementedError,
)
from enginehouse_inference.desired.models import DesiredModels
from enginehouse_inference.devices.devices import Devices
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.protocol import describe
from enginehouse_inference.protocol.cuda_regions import CudaRegion
from enginehouse_inference.protocol.regions import Region, Regions
from enginehouse_inference.service.server_settings import LogSettings, TraceSettings

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "statistics",
    "system_shared_memory",
    "binary_tensor_data",
    "trace",
    "logging",
)


class ManagementMethods:
    """The protocol's unary methods, each from a request to its response, named as in the protocol.

    Args:
        devices: where clients' CUDA shared memory is opened.
        is_ready: whether the server as a whole is.
    """

    def __init__(
        self,
        catalog: Catalog,
        desired: DesiredModels,
        regions: Regions,
        devices: Devices,
        trace_settings: TraceSettings,
        log_settings: LogSettings,
        is_ready: Callable[[], bool],
    ) -> None:
        self._catalog = catalog
        self._desired = desired
        self._regions = regions
        self._devices = devices
        self._trace_settings = trace_settings
        self._log_settings = log_settings
        self._is_ready = is_ready

    async def ServerLive(self, request: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: Any) -> Any:
        try:
            ready = self._catalog.find(request.name, request.version).ready
        except UnavailableError:
            ready = False
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any) -> Any:
        extensions = (*EXTENSIONS, *(("cuda_shared_memory",) if self._devices.has_gpu else ()))
        return service_pb2.ServerMetadataResponse(name="enginehouse", version=_version(), extensions=extensions)

    async def ModelMetadata(self, request: Any) -> Any:
        version = self._catalog.find(request.name, request.version)
        versions = [str(number) for number, slot in self._catalog.slots(request.name) if slot.ready]
        return describe.metadata(version, [request.version] if request.version else versions)

    async def ModelConfig(self, request: Any) -> Any:
        version = self._catalog.find(request.name, request.version)
        return service_pb2.ModelConfigResponse(config=describe.config(version))

    async def ModelStatistics(self, request: Any) -> Any:
        if request.name:
            self._check_known(request.name, request.version)
        response = service_pb2.ModelStatisticsResponse()
        for name in [request.name] if request.name else self._catalog.names():
            for number, slot in self._catalog.slots(name):
                if request.version and request.version != str(number):
                    continue
                statistics = slot.statistics.to_proto(name, str(number))
                if slot.serving is not None:
                    statistics.memory_usage.extend(describe.memory_usage(slot.serving))
                    statistics.inference_stats.cache_miss.count = slot.serving.cache.counts.misses
                response.model_stats.append(statistics)
        return response

    async def RepositoryIndex(self, request: Any) -> Any:
        self._check_repository(request)
        response = service_pb2.RepositoryIndexResponse()
        for name in self._catalog.names():
            for number, slot in self._catalog.slots(name):
                state, reason = slot.shown()
                if not request.ready or slot.ready:
                    response.models.add(name=name, version=str(number), state=state.value, reason=reason)
        if not request.ready:
            for name in self._desired.unloaded_by_hand():
                response.models.add(name=name, state="UNAVAILABLE", reason="unloaded in this process by a client")
        return response

    async def RepositoryModelLoad(self, request: Any) -> Any:
        self._check_repository(request)
        for key in request.parameters:
            if key != "config":
                raise UnimplementedError(
                    f"load parameter {key!r} is not supported: models come from engine directories, "
                    'named in the parameter "config"'
                )
        config = None
        if "config" in request.parameters:
            parameter = request.parameters["config"]
            if parameter.WhichOneof("parameter_choice") != "string_param":
                raise InvalidArgumentError('load parameter "config" must be a string that holds JSON')
            config = parameter.string_param
        await self._desired.load(_named(request.model_name), config)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        self._check_repository(request)
        await self._desired.unload(_named(request.model_name))
        return service_pb2.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(self, request: Any) -> Any:
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for region in self._regions.list(Region, request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.size
        return response

    async def SystemSharedMemoryRegister(self, request: Any) -> Any:
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any) -> Any:
        self._regions.unregister(Region, request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(self, request: Any) -> Any:
        response = service_pb2.CudaSharedMemoryStatusResponse()
        for region in self._regions.list(CudaRegion, request.name):
            status = response.regions[region.name]
            status.name, status.device_id, status.byte_size = region.name, region.device_id, region.size
        return response

    async def CudaSharedMemoryRegister(self, request: Any) -> Any:
        self._devices.require_cuda_memory()
        region = self._regions.register_cuda(request.name, request.raw_handle, request.device_id, request.byte_size)
        try:
            await self._devices.open_region(region.memory)
        except BaseException:
            self._regions.unregister(CudaRegion, request.name)
            raise
        return service_pb2.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(self, request: Any) -> Any:
        self._regions.unregister(CudaRegion, request.name)
        # So that a client may free its memory, unless its requests use it still.
        await self._devices.regions_closed()
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Any) -> Any:
        if request.model_name:
            self._check_known(request.model_name, "")
        return self._trace_settings.answer(request)

    async def LogSettings(self, request: Any) -> Any:
        return self._log_settings.answer(request)

    def _check_known(self, name: str, version: str) -> None:
        numbers = [str(number) for number, _ in self._catalog.slots(name)]
        if not numbers or (version and version not in numbers):
            self._catalog.find(name, version)

    def _check_repository(self, request: Any) -> None:
        if request.repository_name:
            raise InvalidArgumentError(
                f"no repository {request.repository_name!r}: this server has one, without a name"
            )


def _named(name: str) -> str:
    if not name:
        raise InvalidArgumentError("no model_name: expected the name of a model")
    return name


def _version() -> str:
    try:
        return installed_version("enginehouse-inference")
    except PackageNotFoundError:
        return "0.0.0"
