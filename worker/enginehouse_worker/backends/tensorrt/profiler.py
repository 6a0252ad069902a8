"""What each layer of a plan takes, by TensorRT's own profiler, beside what the inspector says of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, BatchProfile
from enginehouse_worker.backends.engine_files import read_engine
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.inspector import inspect, open_plan
from enginehouse_worker.backends.tensorrt.library import Library, open_library
from enginehouse_worker.backends.tensorrt.shapes import profile_for
from enginehouse_worker.errors import WorkerError

RUNS = 10
_WARMUPS = 3  # the first batches of a shape set it up, and clocks rise
_INTEGERS: Mapping[str, Any] = {"INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def describe_layers(
    directory: Path, *, batch: int | None = None, runs: int = RUNS, device: str = "cuda:0"
) -> dict[str, Any] | None:
    """`inspector.json`'s content for an engine directory: its layers, and what each takes on a device.

    Args:
        batch: the batch size to time; the usual one of the engine's first profile when None.
        runs: batches of which a layer's time is the mean.

    Returns:
        `{"layers", "batch", "runs"}`, without times where profiling fails, which is logged; None where the plan cannot
        be loaded or TensorRT does not say what is in it.

    Raises:
        WorkerError: the directory holds no engine of this backend, or there is no such device.
    """
    library = open_library()
    description = read_engine(directory, "tensorrt")
    cuda.open_device(device)
    opened = open_plan(library, directory, description)
    if opened is None:
        return None
    _runtime, engine = opened  # the runtime must outlive the engine
    found = inspect(library, engine)
    if found is None:
        return None
    profiles = [BatchProfile(**item) for item in description["profiles"]]
    wanted = profiles[0].opt if batch is None else batch
    size = wanted if description["batched"] else None
    try:
        profile = 0 if batch is None else profile_for(wanted, profiles)
        shaped, times = layer_times(library, engine, batch=size, profile=profile, runs=runs)
    except Exception as error:  # whatever it is, the engine is good without it
        print(f"the layers were not timed: {error}", file=sys.stderr)
        library.messages.take_errors()
        return found
    return {"layers": with_times((shaped or found)["layers"], times), "batch": wanted, "runs": runs}


def with_times(layers: list[dict[str, Any]], times: Mapping[str, float]) -> list[dict[str, Any]]:
    """The inspector's layers with `milliseconds`, which a layer of another profile has not.

    What only the profiler names comes last, so that the sum is whole.
    """
    left = dict(times)
    found = []
    for layer in layers:
        taken = left.pop(str(layer["name"]), None)
        found.append(layer if taken is None else {**layer, "milliseconds": round(taken, 6)})
    return found + [{"name": name, "milliseconds": round(taken, 6)} for name, taken in left.items()]


def layer_times(
    library: Library, engine: Any, *, batch: int | None, profile: int = 0, runs: int = RUNS
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """The inspector's layers with their types, and milliseconds of each by name: the mean of `runs` batches.

    Layers run one after the other while the profiler watches, each between two events: their sum is more than a batch
    takes. They run on a context of their own. Needs the device of the plan, made current in this thread.

    Args:
        engine: TensorRT's, whose inputs get random values in device memory and the profile's usual shapes.
        batch: dimension 0 of every input; None leaves it as the profile has it.

    Raises:
        WorkerError: FAILED_PRECONDITION for what cannot be profiled; RESOURCE_EXHAUSTED when memory is out; INTERNAL
            when TensorRT fails.
    """
    collector = _collector(library.trt)
    bindings = cuda.runtime()
    with ExitStack() as undo:
        stream = cuda.checked(bindings.cudaStreamCreateWithFlags(bindings.cudaStreamNonBlocking), "making a stream")
        undo.callback(bindings.cudaStreamDestroy, stream)
        context = engine.create_execution_context()
        if context is None:
            raise WorkerError("RESOURCE_EXHAUSTED", f"no context to profile with: {library.messages.take_errors()}")
        if profile and not context.set_optimization_profile_async(profile, int(stream)):
            raise WorkerError("INTERNAL", f"optimization profile {profile}: {library.messages.take_errors()}")
        _bind(library, engine, context, batch, profile, undo)
        for number in range(_WARMUPS + runs):
            if number == _WARMUPS:
                # Only now: attached earlier, it would time the setting up.
                context.profiler = collector
            if not context.execute_async_v3(int(stream)):
                raise WorkerError("INTERNAL", f"TensorRT cannot run the batch: {library.messages.take_errors()}")
            cuda.checked(bindings.cudaStreamSynchronize(stream), "profiling a batch")
        # Without shapes the inspector's types are "N/A due to dynamic shapes".
        shaped = inspect(library, engine, context)
        del context  # before its memory goes
    return shaped, {name: taken / runs for name, taken in collector.taken.items()}


def _collector(trt: Any) -> Any:
    class Collector(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.taken: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.taken[layer_name] = self.taken.get(layer_name, 0.0) + ms

    return Collector()


def _bind(library: Library, engine: Any, context: Any, batch: int | None, profile: int, undo: ExitStack) -> None:
    """Give a context shapes, and memory of `undo`'s for every tensor."""
    trt = library.trt
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise WorkerError("FAILED_PRECONDITION", f"tensor {name!r} is read on the host")
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in inputs:
        shape = tuple(engine.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            usual = tuple(engine.get_tensor_profile_shape(name, profile)[1])
            shape = (batch, *usual[1:]) if batch is not None else usual
            if not context.set_input_shape(name, shape):
                reason = library.messages.take_errors() or "not what the engine was built for"
                raise WorkerError("INVALID_ARGUMENT", f"input {name!r} of shape {list(shape)}: {reason}")
        value = random_values(engine.get_tensor_dtype(name).name, shape)
        memory = _memory(value.nbytes, undo)
        _set_address(context, name, memory)
        if value.nbytes:
            bindings = cuda.runtime()
            kind = bindings.cudaMemcpyKind.cudaMemcpyHostToDevice
            copied = bindings.cudaMemcpy(memory.pointer, value.ctypes.data, value.nbytes, kind)
            cuda.checked(copied, f"copying random values for {name}")
    for name in names:
        if name in inputs:
            continue
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise WorkerError("FAILED_PRECONDITION", f"the shape of output {name!r} depends on the data")
        _set_address(context, name, _memory(math.prod(shape) * engine.get_tensor_dtype(name).itemsize, undo))


def _memory(size: int, undo: ExitStack) -> cuda.Memory:
    memory = cuda.Memory(size)
    undo.callback(memory.close)
    return memory


def _set_address(context: Any, name: str, memory: cuda.Memory) -> None:
    if not context.set_tensor_address(name, memory.pointer):
        raise WorkerError("INTERNAL", f"TensorRT does not take memory for tensor {name!r}")


def random_values(name: str, shape: tuple[int, ...]) -> Array:
    """Values of one of TensorRT's types, by its name: floats in [0, 1), pixels, else 0 and 1, which any table holds.

    Raises:
        WorkerError: FAILED_PRECONDITION for a type without values here.
    """
    random = np.random.default_rng(0)
    if name in ("FLOAT", "HALF"):
        return random.random(shape, dtype=np.float32).astype(np.float32 if name == "FLOAT" else np.float16)
    if name == "BF16":  # the upper half of a float32
        return (random.random(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if name == "UINT8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    if name not in _INTEGERS:
        raise WorkerError("FAILED_PRECONDITION", f"no values of type {name} to profile with")
    return random.integers(0, 2, shape, dtype=np.uint8).astype(_INTEGERS[name])
