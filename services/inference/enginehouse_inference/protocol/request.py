"""A ModelInferRequest, checked against a model's signature."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.regions import DeviceRegion, Place, RegionPart
from enginehouse.workers.shared import SharedPart
from enginehouse.workers.tensors import ITEM_BYTES, Buffer, FilePart, Part, TensorSpec, element_offsets
from enginehouse_inference.batching.rows import RequestInput
from enginehouse_inference.protocol import parameters
from enginehouse_inference.protocol.contents import raw_contents
from enginehouse_inference.protocol.cuda_regions import CudaRegion
from enginehouse_inference.protocol.regions import Region, Regions


@dataclass(frozen=True)
class Signature:
    """A served model's tensors. `batched`: dimension 0 of each is the batch."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batched: bool

    @cached_property
    def every_output(self) -> tuple[RequestedOutput, ...]:
        """What a request gets that names no outputs."""
        return tuple(RequestedOutput(name) for name in self.outputs)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants: as it is, as its `classes` highest classes, or in a region at `offset`.

    `place`: where the worker writes it itself, in a CUDA region.
    """

    name: str
    classes: int = 0
    region: Region | CudaRegion | None = None
    offset: int = 0
    size: int = 0
    place: Place | None = None


@dataclass(frozen=True)
class CheckedRequest:
    """What can be computed. `shape` is equal for requests that may share a batch.

    `timeout_ns`: how long it asks to wait in the queue at most. `priority`: 1 leaves first; 0 is the model's default.
    `device_memory`: the clients' device memory that it reads and writes; with any it is a batch of its own.
    """

    inputs: tuple[RequestInput, ...]
    outputs: tuple[RequestedOutput, ...]
    rows: int
    shape: Hashable
    timeout_ns: int | None
    priority: int = 0
    device_memory: tuple[DeviceRegion, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """Outputs that the worker writes into device memory."""
        return tuple(output.place for output in self.outputs if output.place is not None)


def check_request(
    request: Any, raw: Sequence[Buffer | SharedPart], signature: Signature, regions: Regions, model: str
) -> CheckedRequest:
    """Check a request's tensors.

    Args:
        request: a ModelInferRequest.
        raw: its raw input contents: as they came, or where a front put them.

    Raises:
        InvalidArgumentError: naming the tensor, what came and what was expected.
        NotFoundError: a shared memory region is not registered.
    """
    inputs = _inputs(request, raw, signature, regions, model)
    rows = _rows(inputs) if signature.batched else 1
    timeout, priority = None, 0
    if given := request.parameters:
        timeout = parameters.integer(given, "timeout", f"model {model}")
        priority = parameters.integer(given, "priority", f"model {model}") or 0
    skip = 1 if signature.batched else 0
    outputs = _outputs(request, signature, regions, model, rows)
    memory = [t.data.region for t in inputs if isinstance(t.data, RegionPart)]
    memory += [output.place.region for output in outputs if output.place is not None]
    return CheckedRequest(
        inputs=inputs,
        outputs=outputs,
        rows=rows,
        shape=tuple(sorted((t.name, t.shape[skip:]) for t in inputs)),
        # Microseconds, as in Triton; 0 is none.
        timeout_ns=timeout * 1000 if timeout else None,
        priority=priority,
        device_memory=tuple(memory),
    )


def _inputs(
    request: Any, raw: Sequence[Buffer | SharedPart], signature: Signature, regions: Regions, model: str
) -> tuple[RequestInput, ...]:
    tensors: dict[str, RequestInput] = {}
    remaining = iter(raw)
    expecting_raw = 0
    for tensor in request.inputs:
        name = tensor.name
        spec = signature.inputs.get(name)
        if spec is None:
            raise InvalidArgumentError(
                f"model {model} has no input {name!r}: expected {', '.join(repr(n) for n in signature.inputs)}",
                details={"input": name},
            )
        if name in tensors:
            raise InvalidArgumentError(f"input {name!r} came twice: expected it once", details={"input": name})
        shape = _shape(tensor, spec, signature.batched)
        given = tensor.parameters
        region = parameters.text(given, "shared_memory_region", f"input {name!r}") if given else None
        count = math.prod(shape)
        data: Part
        if region is not None:
            if tensor.HasField("contents"):
                raise InvalidArgumentError(f"input {name!r}: shared memory and contents: expected one of them")
            data = _shared(tensor, regions.get(region))
        elif tensor.HasField("contents"):
            if raw:
                raise InvalidArgumentError(
                    f"input {name!r}: contents and raw_input_contents in one request: expected one of them"
                )
            data = raw_contents(name, spec.dtype, tensor.contents, count)
        else:
            expecting_raw += 1
            content = next(remaining, None)
            if content is None and raw:
                raise InvalidArgumentError(
                    f"{len(raw)} raw_input_contents: expected one for each input outside shared memory, "
                    f"{name!r} has none"
                )
            if content is None and count:
                raise InvalidArgumentError(
                    f"input {name!r} has no data: expected raw_input_contents, contents, or shared memory"
                )
            data = content if content is not None else b""
        tensors[name] = _sized(name, spec.dtype, shape, data, count)
    if expecting_raw < len(raw):
        raise InvalidArgumentError(
            f"{len(raw)} raw_input_contents: expected {expecting_raw}, one for each input outside shared memory"
        )
    if missing := [n for n in signature.inputs if n not in tensors]:
        raise InvalidArgumentError(
            f"model {model}: input {missing[0]!r} is missing: expected {len(signature.inputs)} inputs, "
            f"got {len(tensors)}",
            details={"input": missing[0]},
        )
    return tuple(tensors.values())


def _shape(tensor: Any, spec: TensorSpec, batched: bool) -> tuple[int, ...]:
    if tensor.datatype != spec.dtype:
        raise InvalidArgumentError(
            f"input {spec.name!r} has datatype {tensor.datatype!r}: expected {spec.dtype!r}",
            details={"input": spec.name},
        )
    shape = tuple(tensor.shape)
    if len(shape) != len(spec.shape):
        fits = False
    elif batched:
        # A batch of any size: the batcher splits what the engine cannot take at once.
        fits = shape[0] >= 1 and _match(shape[1:], spec.shape[1:])
    else:
        fits = _match(shape, spec.shape)
    if not fits:
        expected = [-1, *spec.shape[1:]] if batched else list(spec.shape)
        note = " (-1: any; dimension 0 is the batch, at least 1)" if batched else " (-1: any)"
        raise InvalidArgumentError(
            f"input {spec.name!r} has shape {list(shape)}: expected {expected}{note if -1 in expected else ''}",
            details={"input": spec.name},
        )
    return shape


def _match(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a shape is the one expected, where -1 is any size."""
    if shape == expected and -1 not in expected:  # as mostly; a request's own -1 is no size
        return True
    return all(got >= 0 if want < 0 else got == want for got, want in zip(shape, expected, strict=True))


def _shared(tensor: Any, region: Region | CudaRegion) -> FilePart | RegionPart:
    what = f"input {tensor.name!r}"
    size = parameters.integer(tensor.parameters, "shared_memory_byte_size", what)
    offset = parameters.integer(tensor.parameters, "shared_memory_offset", what) or 0
    if size is None:
        raise InvalidArgumentError(f"{what}: shared_memory_region without shared_memory_byte_size: expected both")
    return region.part(offset, size, what)


def _sized(name: str, dtype: str, shape: tuple[int, ...], data: Part, count: int) -> RequestInput:
    if dtype != "BYTES":
        expected = count * ITEM_BYTES[dtype]
        if len(data) != expected:
            raise InvalidArgumentError(
                f"input {name!r} has {len(data)} bytes: expected {expected} for {dtype} of shape {list(shape)}",
                details={"input": name},
            )
        return RequestInput(name, dtype, shape, data)
    if isinstance(data, RegionPart):
        raise InvalidArgumentError(
            f"input {name!r} is BYTES: expected it in the request or in system shared memory, not in CUDA "
            "shared memory",
            details={"input": name},
        )
    if isinstance(data, FilePart):
        data = data.read()
    offsets = element_offsets(data.view() if isinstance(data, SharedPart) else data, f"input {name!r}")
    if len(offsets) - 1 != count:
        raise InvalidArgumentError(
            f"input {name!r} has {len(offsets) - 1} BYTES elements: expected {count} for shape {list(shape)}",
            details={"input": name},
        )
    return RequestInput(name, dtype, shape, data, offsets)


def _rows(inputs: Sequence[RequestInput]) -> int:
    rows = {t.shape[0] for t in inputs}
    if len(rows) > 1:
        sizes = ", ".join(f"{t.name!r} {t.shape[0]}" for t in inputs)
        raise InvalidArgumentError(f"inputs of different batch sizes: {sizes}: expected one for all")
    return rows.pop()


def _outputs(
    request: Any, signature: Signature, regions: Regions, model: str, rows: int
) -> tuple[RequestedOutput, ...]:
    if not request.outputs:
        return signature.every_output
    outputs: dict[str, RequestedOutput] = {}
    for tensor in request.outputs:
        name = tensor.name
        what = f"output {name!r}"
        if name not in signature.outputs:
            raise InvalidArgumentError(
                f"model {model} has no {what}: expected {', '.join(repr(n) for n in signature.outputs)}",
                details={"output": name},
            )
        if name in outputs:
            raise InvalidArgumentError(f"{what} was asked for twice: expected once", details={"output": name})
        classes = parameters.integer(tensor.parameters, "classification", what) or 0
        if classes and signature.outputs[name].dtype == "BYTES":
            raise InvalidArgumentError(f"{what} is BYTES: classification needs numbers")
        region = parameters.text(tensor.parameters, "shared_memory_region", what)
        if region is None:
            outputs[name] = RequestedOutput(name, classes)
            continue
        size = parameters.integer(tensor.parameters, "shared_memory_byte_size", what)
        if size is None:
            raise InvalidArgumentError(f"{what}: shared_memory_region without shared_memory_byte_size: expected both")
        offset = parameters.integer(tensor.parameters, "shared_memory_offset", what) or 0
        found = regions.get(region)
        place = None
        if isinstance(found, CudaRegion):
            _check_placed(signature, name, classes, rows, size)
            place = found.place(name, offset, size)
        outputs[name] = RequestedOutput(name, classes, found, offset, size, place)
    return tuple(outputs.values())


def _check_placed(signature: Signature, name: str, classes: int, rows: int, size: int) -> None:
    """Check what the worker will write into CUDA shared memory, as far as its size is known before it is computed."""
    spec = signature.outputs[name]
    if classes or spec.dtype == "BYTES":
        what = "a classification" if classes else "BYTES"
        raise InvalidArgumentError(
            f"output {name!r} is {what}: expected it in the response or in system shared memory, not in CUDA shared "
            "memory",
            details={"output": name},
        )
    shape = (rows, *spec.shape[1:]) if signature.batched else spec.shape
    if min(shape, default=0) >= 0 and math.prod(shape) * ITEM_BYTES[spec.dtype] > size:
        raise InvalidArgumentError(
            f"output {name!r} has {math.prod(shape) * ITEM_BYTES[spec.dtype]} bytes: expected shared memory for them, "
            f"the request names {size}",
            details={"output": name},
        )
