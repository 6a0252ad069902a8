"""What is asked of a model, fitted to its signature; and what came back, as arrays. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.client.device_arrays import DeviceArray, device_array, fit_device, is_device_array
from enginehouse.client.device_memory import Placed
from enginehouse.client.tensors import decode, decode_contents, fit
from enginehouse.client.values import InferResult, ModelSignature, TensorSpec
from enginehouse.errors import InvalidArgumentError

Inputs = Any
"""An array for a model with one input, or a mapping from input name to array."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a model, whatever the inputs. `into`: device arrays that take outputs, by name."""

    model_name: str
    version: int | str | None
    outputs: Sequence[str] | None
    into: Mapping[str, Any]
    parameters: Mapping[str, Any] | None
    casting: str

    def output_names(self, signature: ModelSignature) -> list[str]:
        """The outputs to name in a request; none stands for all."""
        if not self.into:
            return list(self.outputs or ())
        named = self.outputs if self.outputs is not None else [spec.name for spec in signature.outputs]
        return list(dict.fromkeys((*named, *self.into)))


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
    return {name: _fit(value, specs[name], casting) for name, value in inputs.items()}


def _fit(value: Any, spec: TensorSpec, casting: str) -> tuple[str, Any]:
    if not is_device_array(value):
        return fit(value, spec, casting)
    what = f"input {spec.name!r}"
    return fit_device(device_array(value, what), spec, what)


def fit_targets(into: Mapping[str, Any], signature: ModelSignature) -> dict[str, DeviceArray]:
    """The device arrays that take outputs, by name.

    Raises:
        InvalidArgumentError: a name, dtype or shape that the model does not give; no device array, or one not to write.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    arrays: dict[str, DeviceArray] = {}
    for name, value in into.items():
        what = f"output {name!r}"
        if name not in specs:
            raise InvalidArgumentError(f"{signature.name} has no {what}: expected {', '.join(specs)}")
        if not is_device_array(value):
            raise InvalidArgumentError(
                f"into: {what} is {type(value).__name__}: expected an array on a device (with "
                "__cuda_array_interface__); other outputs are in the result"
            )
        _, arrays[name] = fit_device(device_array(value, what), specs[name], what)
        if arrays[name].read_only:
            raise InvalidArgumentError(f"into: the array for {what} is read-only: expected one to write to")
    return arrays


def name_region(parameters: Any, placed: Placed, size: int) -> None:
    """Say in a tensor's parameters that its `size` bytes lie in a region."""
    parameters["shared_memory_region"].string_param = placed.region
    parameters["shared_memory_byte_size"].int64_param = size
    if placed.offset:
        parameters["shared_memory_offset"].int64_param = placed.offset


def result_of(response: Any, into: Mapping[str, Any]) -> InferResult:
    """A response as arrays; outputs that went into device arrays are these.

    Raises:
        InvalidArgumentError: such an array has another shape than its output.
    """
    arrays: dict[str, Any] = {}
    raw = list(response.raw_output_contents)
    for place, output in enumerate(response.outputs):
        if output.name in into:
            arrays[output.name] = _taken(output, into[output.name])
        elif place < len(raw):
            arrays[output.name] = decode(output.datatype, output.shape, raw[place])
        else:
            arrays[output.name] = decode_contents(output.datatype, output.shape, output.contents)
    parameters = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in response.parameters.items()}
    return InferResult(response.model_name, response.model_version, response.id, arrays, parameters)


def _taken(output: Any, array: Any) -> Any:
    shape = tuple(array.__cuda_array_interface__["shape"])
    if shape != tuple(output.shape):
        raise InvalidArgumentError(
            f"output {output.name!r} has shape {list(output.shape)}, and the device array that took it {list(shape)}"
        )
    return array


def set_parameters(message: Any, values: Mapping[str, Any]) -> None:
    """Write values as the protocol's parameters.

    Raises:
        InvalidArgumentError: one is of a type that they cannot be.
    """
    for name, value in values.items():
        setattr(message[name], _parameter_field(name, value), value)


def _parameter_field(name: str, value: Any) -> str:
    for kind, field in ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param")):
        if isinstance(value, kind):
            return field
    raise InvalidArgumentError(f"parameter {name!r} is {type(value).__name__}: expected bool, int, float or str")
