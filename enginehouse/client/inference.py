"""Inference over the Open Inference Protocol, with what any server of it answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from enginehouse.client.connection import Endpoint, Outgoing
from enginehouse.client.device_arrays import DeviceArray
from enginehouse.client.device_memory import Placed, SharedDeviceMemory
from enginehouse.client.fitting import Inputs, Wanted, fit_inputs, fit_targets, name_region, result_of, set_parameters
from enginehouse.client.tensors import encode
from enginehouse.client.values import InferResult, ModelIndex, ModelSignature, TensorSpec
from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError

# Requests of a stream that wait for their answers.
WINDOW = 32


class AsyncInference:
    """An inference process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._signatures: dict[tuple[str, str], ModelSignature] = {}
        self._memory = SharedDeviceMemory(endpoint)

    async def close(self) -> None:
        """Take back what this process registered with the server."""
        await self._memory.close()

    async def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None,
        version: int | str | None,
        timeout: float | None,
        request_id: str | None,
        parameters: Mapping[str, Any] | None,
        casting: str,
        into: Mapping[str, Any] | None = None,
    ) -> InferResult:
        """One request (`Client.infer` says what the arguments mean)."""
        wanted = Wanted(model_name, version, outputs, into or {}, parameters, casting)
        # A server that was started anew knows none of our device memory. It says so of one region at a time, before it
        # computes anything.
        for _ in range(len(wanted.into) + (len(inputs) if isinstance(inputs, Mapping) else 1)):
            try:
                return await self._once(wanted, inputs, request_id, timeout)
            except NotFoundError as error:
                if not self._memory.forget(error.details.get("region", "")):
                    raise
        return await self._once(wanted, inputs, request_id, timeout)

    async def _once(self, wanted: Wanted, inputs: Inputs, request_id: str | None, timeout: float | None) -> InferResult:
        placed: list[Placed] = []
        try:
            request = await self._request(wanted, inputs, request_id, placed)
            return result_of(await self._endpoint.unary(self._stub().ModelInfer, request, timeout=timeout), wanted.into)
        except (InvalidArgumentError, NotFoundError):
            # The model may have been replaced by one of another signature.
            self._signatures.pop(_key(wanted.model_name, wanted.version), None)
            raise
        finally:
            if placed:
                await self._memory.release(placed)

    async def infer_stream(
        self,
        model_name: str,
        requests: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        outputs: Sequence[str] | None,
        version: int | str | None,
        casting: str,
    ) -> AsyncIterator[InferResult]:
        """Many requests over one stream (`Client.infer_stream` says what the arguments mean)."""
        window = asyncio.Semaphore(WINDOW)
        prefix = uuid.uuid4().hex[:8]
        arrived: dict[str, Any] = {}
        placed: list[Placed] = []
        wanted = Wanted(model_name, version, outputs, {}, None, casting)
        turn = 0

        async def messages() -> AsyncIterator[Any]:
            number = 0
            async for inputs in _iterate(requests):
                await window.acquire()
                yield await self._request(wanted, inputs, f"{prefix}-{number}", placed)
                number += 1

        try:
            async for response in self._endpoint.stream(self._stub().ModelStreamInfer, Outgoing(messages())):
                if response.error_message and not response.infer_response.id:
                    raise EnginehouseError(f"{model_name}: {response.error_message}")
                arrived[response.infer_response.id] = response
                while (ready := arrived.pop(f"{prefix}-{turn}", None)) is not None:
                    turn += 1
                    window.release()
                    if ready.error_message:
                        raise EnginehouseError(f"{model_name}: {ready.error_message}")
                    yield result_of(ready.infer_response, {})
        finally:
            await self._memory.release(placed)

    async def signature(self, model_name: str, version: int | str | None) -> ModelSignature:
        """What a served model takes and gives, asked of the server."""
        request = pb.ModelMetadataRequest(name=model_name, version=_version(version))
        message = await self._endpoint.unary(self._stub().ModelMetadata, request)
        signature = ModelSignature(
            name=message.name,
            versions=tuple(message.versions),
            platform=message.platform,
            inputs=_specs(message.inputs),
            outputs=_specs(message.outputs),
        )
        self._signatures[_key(model_name, version)] = signature
        return signature

    async def server_ready(self, timeout: float) -> bool:
        """Whether the process answers and says that it is ready."""
        try:
            response = await self._endpoint.unary(self._stub().ServerReady, pb.ServerReadyRequest(), timeout=timeout)
        except EnginehouseError:
            return False
        return bool(response.ready)

    async def model_ready(self, model_name: str, version: int | str | None, timeout: float | None = None) -> bool:
        """Whether a version of a model is ready; False for one that the process does not know."""
        request = pb.ModelReadyRequest(name=model_name, version=_version(version))
        try:
            return bool((await self._endpoint.unary(self._stub().ModelReady, request, timeout=timeout)).ready)
        except (NotFoundError, InvalidArgumentError):
            return False

    async def index(self) -> list[ModelIndex]:
        """Every model and version that the process knows, with its state and why it is in it."""
        response = await self._endpoint.unary(self._stub().RepositoryIndex, pb.RepositoryIndexRequest())
        return [ModelIndex(m.name, m.version, m.state, m.reason) for m in response.models]

    def _stub(self) -> Any:
        return self._endpoint.stub(service_pb2_grpc.GRPCInferenceServiceStub)

    async def _request(self, wanted: Wanted, inputs: Inputs, request_id: str | None, placed: list[Placed]) -> Any:
        """A request; what it names of device memory is added to `placed`, and is the caller's to release."""
        tensors, targets, signature = await self._fitted(wanted, inputs)
        request = pb.ModelInferRequest(
            model_name=wanted.model_name, model_version=_version(wanted.version), id=request_id or ""
        )
        for name, (datatype, array) in tensors.items():
            tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            if isinstance(array, DeviceArray):
                placed.append(await self._memory.place(array, f"input {name!r}"))
                name_region(tensor.parameters, placed[-1], array.nbytes)
            else:
                request.raw_input_contents.append(encode(datatype, array))
        for name in wanted.output_names(signature):
            tensor = request.outputs.add(name=name)
            if name in targets:
                placed.append(await self._memory.place(targets[name], f"output {name!r}"))
                name_region(tensor.parameters, placed[-1], targets[name].nbytes)
        set_parameters(request.parameters, wanted.parameters or {})
        return request

    async def _fitted(
        self, wanted: Wanted, inputs: Inputs
    ) -> tuple[dict[str, tuple[str, Any]], dict[str, DeviceArray], ModelSignature]:
        signature = self._signatures.get(_key(wanted.model_name, wanted.version))
        if signature is not None:
            try:
                return fit_inputs(inputs, signature, wanted.casting), fit_targets(wanted.into, signature), signature
            except InvalidArgumentError:
                pass  # what we remember may be an older version's signature: ask before refusing
        signature = await self.signature(wanted.model_name, wanted.version)
        return fit_inputs(inputs, signature, wanted.casting), fit_targets(wanted.into, signature), signature


async def _iterate(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)


def _version(version: int | str | None) -> str:
    return "" if version is None else str(version)


def _key(model_name: str, version: int | str | None) -> tuple[str, str]:
    return model_name, _version(version)
