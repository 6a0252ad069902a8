"""Inference over the Open Inference Protocol, with what any server of it answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from enginehouse.client.connection import Endpoint, Outgoing
from enginehouse.client.tensors import decode, decode_contents, encode, fit
from enginehouse.client.values import InferResult, ModelIndex, ModelSignature, TensorSpec
from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError

Inputs = Any
"""An array for a model with one input, or a mapping from input name to array."""

# Requests of a stream that wait for their answers.
WINDOW = 32


class AsyncInference:
    """An inference process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._signatures: dict[tuple[str, str], ModelSignature] = {}

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
    ) -> InferResult:
        """One request (`Client.infer` says what the arguments mean)."""
        request = await self._request(model_name, inputs, outputs, version, request_id, parameters, casting)
        stub = self._stub()
        try:
            return result_of(await self._endpoint.unary(stub.ModelInfer, request, timeout=timeout))
        except (InvalidArgumentError, NotFoundError):
            # The model may have been replaced by one of another signature.
            self._signatures.pop(_key(model_name, version), None)
            raise

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
        turn = 0

        async def messages() -> AsyncIterator[Any]:
            number = 0
            async for inputs in _iterate(requests):
                await window.acquire()
                yield await self._request(model_name, inputs, outputs, version, f"{prefix}-{number}", None, casting)
                number += 1

        async for response in self._endpoint.stream(self._stub().ModelStreamInfer, Outgoing(messages())):
            if response.error_message and not response.infer_response.id:
                raise EnginehouseError(f"{model_name}: {response.error_message}")
            arrived[response.infer_response.id] = response
            while (ready := arrived.pop(f"{prefix}-{turn}", None)) is not None:
                turn += 1
                window.release()
                if ready.error_message:
                    raise EnginehouseError(f"{model_name}: {ready.error_message}")
                yield result_of(ready.infer_response)

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

    async def _request(
        self,
        model_name: str,
        inputs: Inputs,
        outputs: Sequence[str] | None,
        version: int | str | None,
        request_id: str | None,
        parameters: Mapping[str, Any] | None,
        casting: str,
    ) -> Any:
        tensors = await self._fitted(model_name, inputs, version, casting)
        request = pb.ModelInferRequest(model_name=model_name, model_version=_version(version), id=request_id or "")
        for name, (datatype, array) in tensors.items():
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(encode(datatype, array))
        for name in outputs or ():
            request.outputs.add(name=name)
        for name, value in (parameters or {}).items():
            setattr(request.parameters[name], _parameter_field(name, value), value)
        return request

    async def _fitted(
        self, model_name: str, inputs: Inputs, version: int | str | None, casting: str
    ) -> dict[str, tuple[str, Any]]:
        signature = self._signatures.get(_key(model_name, version))
        if signature is None:
            return fit_inputs(inputs, await self.signature(model_name, version), casting)
        try:
            return fit_inputs(inputs, signature, casting)
        except InvalidArgumentError:
            # What we remember may be an older version's signature: ask before refusing.
            return fit_inputs(inputs, await self.signature(model_name, version), casting)


def fit_inputs(inputs: Inputs, signature: ModelSignature, casting: str) -> dict[str, tuple[str, Any]]:
    """Inputs by name as (datatype, array).

    Raises:
        InvalidArgumentError: a name, dtype or shape that the model does not take.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InvalidArgumentError(
                f"{signature.name} has the inputs {', '.join(specs)}: pass a mapping from name to array"
            )
        inputs = {next(iter(specs)): inputs}
    for name in inputs:
        if name not in specs:
            raise InvalidArgumentError(f"{signature.name} has no input {name!r}: expected {', '.join(specs)}")
    # Missing ones are the server's to judge: an input may be optional.
    return {name: fit(value, specs[name], casting) for name, value in inputs.items()}


def result_of(response: Any) -> InferResult:
    """A response as arrays."""
    arrays: dict[str, Any] = {}
    raw = list(response.raw_output_contents)
    for place, output in enumerate(response.outputs):
        if place < len(raw):
            arrays[output.name] = decode(output.datatype, output.shape, raw[place])
        else:
            arrays[output.name] = decode_contents(output.datatype, output.shape, output.contents)
    parameters = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in response.parameters.items()}
    return InferResult(response.model_name, response.model_version, response.id, arrays, parameters)


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


def _parameter_field(name: str, value: Any) -> str:
    for kind, field in ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param")):
        if isinstance(value, kind):
            return field
    raise InvalidArgumentError(f"parameter {name!r} is {type(value).__name__}: expected bool, int, float or str")
