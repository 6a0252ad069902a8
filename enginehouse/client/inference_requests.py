"""From what a caller gives to the protocol's request, and what device memory it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from enginehouse.client.device_arrays import DeviceArray
from enginehouse.client.device_memory import Placed, SharedDeviceMemory
from enginehouse.client.fitting import Wanted, name_region, set_parameters
from enginehouse.client.tensors import encode
from enginehouse.client.values import ModelSignature

ModelKey = tuple[str, str]
"""A served name and a version; an empty version is the newest."""


@dataclass(frozen=True)
class Fitted:
    """A request's arrays, as the model takes them: inputs as (datatype, array), device arrays for outputs."""

    wanted: Wanted
    tensors: dict[str, tuple[str, Any]]
    targets: dict[str, DeviceArray]
    signature: ModelSignature

    @property
    def device_arrays(self) -> int:
        """How many of them are on a device."""
        inputs = sum(isinstance(array, DeviceArray) for _, array in self.tensors.values())
        return inputs + len(self.targets)


async def request_of(fitted: Fitted, request_id: str, memory: SharedDeviceMemory, placed: list[Placed]) -> Any:
    """A request for the server of `memory`.

    What it names of device memory is added to `placed`, and is the caller's to release.
    """
    wanted = fitted.wanted
    request = pb.ModelInferRequest(
        model_name=wanted.model_name, model_version=version_text(wanted.version), id=request_id
    )
    for name, (datatype, array) in fitted.tensors.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if isinstance(array, DeviceArray):
            placed.append(await memory.place(array, f"input {name!r}"))
            name_region(tensor.parameters, placed[-1], array.nbytes)
        else:
            request.raw_input_contents.append(encode(datatype, array))
    for name in wanted.output_names(fitted.signature):
        tensor = request.outputs.add(name=name)
        if name in fitted.targets:
            placed.append(await memory.place(fitted.targets[name], f"output {name!r}"))
            name_region(tensor.parameters, placed[-1], fitted.targets[name].nbytes)
    set_parameters(request.parameters, wanted.parameters or {})
    return request


def version_text(version: int | str | None) -> str:
    """A version as the protocol says it."""
    return "" if version is None else str(version)


def key_of(model_name: str, version: int | str | None) -> ModelKey:
    """What a request is about."""
    return model_name, version_text(version)
