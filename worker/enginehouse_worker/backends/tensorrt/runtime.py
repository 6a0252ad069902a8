"""Runs plans. Each instance has a context, a stream, pinned host memory, device memory, and CUDA graphs by batch size.

One graph holds the copy in, the computation and the copy out, so that a batch costs the host one launch and one wait.
Instances overlap: while one computes, another's copies run on the copy engines.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, BatchProfile, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.backends.engine_files import read_engine
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.library import Library, open_library
from enginehouse_worker.backends.tensorrt.options import LoadOptions, load_options
from enginehouse_worker.backends.tensorrt.shapes import profile_for
from enginehouse_worker.errors import WorkerError

Shapes = tuple[tuple[int, ...], ...]


def load(engine: Path, *, device: str, options: Mapping[str, Any]) -> TensorRtEngine:
    """Load an engine directory on a GPU; `options` override those it was built with.

    Raises:
        WorkerError: FAILED_PRECONDITION when it was built for another GPU or version of TensorRT; RESOURCE_EXHAUSTED
            when the device's memory does not hold it.
    """
    library = open_library()
    description = read_engine(engine, "tensorrt")
    chosen = load_options({**description.get("options", {}), **options})
    facts = cuda.open_device(device)
    check_fits(description, library.trt.__name__, library.trt.__version__, facts)
    data = (engine / description["payload"]).read_bytes()
    runtime = library.trt.Runtime(library.logger)
    if description.get("version_compatible") and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    made = runtime.deserialize_cuda_engine(data)
    if made is None:
        reason = library.messages.take_errors() or "no reason given"
        raise WorkerError("FAILED_PRECONDITION", f"TensorRT cannot load the engine: {reason}")
    profiles = tuple(BatchProfile(**item) for item in description["profiles"])
    return TensorRtEngine(library, runtime, made, Signature.from_json(description), profiles, chosen, facts)


def check_fits(description: Mapping[str, Any], module: str, version: str, facts: cuda.DeviceFacts) -> None:
    """Raise FAILED_PRECONDITION, naming both sides, for a plan of another GPU or TensorRT."""
    built = description.get("device", {})
    product, capability = str(built.get("product", "")), str(built.get("compute_capability", ""))
    same_device = capability == facts.compute_capability and product in ("any", facts.product)
    ampere = float(facts.compute_capability) >= 8.0
    if not same_device and not (description.get("hardware_compatible") and ampere):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built for {product} (compute capability {capability}); this GPU is "
            f"{facts.product} ({facts.compute_capability}). Build one for it: enginehouse optimize MODEL --target "
            f"tensorrt:{str(description.get('precision', 'fp16')).lower()} on a machine with that GPU",
        )
    library = str(description.get("library", module))
    if ("rtx" in library) != ("rtx" in module):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built by {library!r}, and {module!r} is installed here: neither of TensorRT and "
            "TensorRT for RTX runs the other's engines; build it again with this one",
        )
    theirs = str(description.get("backend_version", ""))
    same_major = theirs.partition(".")[0] == version.partition(".")[0]
    if theirs != version and not (description.get("version_compatible") and same_major):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built by TensorRT {theirs} and {module} {version} is installed here: build it again with "
            "this version, or with the option version_compatible=true",
        )


class TensorRtEngine:
    """A plan in device memory."""

    def __init__(
        self,
        library: Library,
        runtime: Any,
        engine: Any,
        signature: Signature,
        profiles: tuple[BatchProfile, ...],
        options: LoadOptions,
        facts: cuda.DeviceFacts,
    ) -> None:
        self.library = library
        self.engine = engine
        self.profiles = profiles
        self.options = options
        self.device = facts
        self._runtime = runtime
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def new_instance(self) -> TensorRtInstance:
        """A context with its stream and memory. Belongs to the thread that asks for it.

        Raises:
            WorkerError: RESOURCE_EXHAUSTED when the device's memory does not hold another.
        """
        return TensorRtInstance(self)

    def close(self) -> None:
        self.engine = None
        self._runtime = None


@dataclass
class _Graph:
    """A captured batch: launched as one."""

    executable: Any
    graph: Any


class TensorRtInstance:
    """One stream of work. `run` returns views of its pinned memory, good until the next `run`."""

    def __init__(self, engine: TensorRtEngine) -> None:
        cuda.open_device(f"cuda:{engine.device.index}")  # current in this thread
        self._engine = engine
        self._cuda = cuda.runtime()
        self._inputs = engine.signature.inputs
        self._outputs = engine.signature.outputs
        self._contexts: dict[int, Any] = {}
        self._graphs: OrderedDict[Shapes, _Graph] = OrderedDict()
        self._host: dict[str, cuda.Memory] = {}
        self._device: dict[str, cuda.Memory] = {}
        self.stream = cuda.checked(
            self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking), "making a stream"
        )
        flags = 0 if engine.options.spinning else self._cuda.cudaEventBlockingSync
        self._event = cuda.checked(
            self._cuda.cudaEventCreateWithFlags(flags | self._cuda.cudaEventDisableTiming), "making an event"
        )
        try:
            for spec in (*self._inputs, *self._outputs):
                size = self._largest(spec)
                self._host[spec.name] = cuda.Memory(size, pinned=True)
                self._device[spec.name] = cuda.Memory(size)
            self._context(0)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says."""
        arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in self._inputs]
        shapes: Shapes = tuple(array.shape for array in arrays)
        for spec, array in zip(self._inputs, arrays, strict=True):
            memory = self._host[spec.name]
            if array.nbytes > memory.size:
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"input {spec.name!r} of shape {list(array.shape)} is larger than the engine was built for",
                )
            np.copyto(_view(memory, array.dtype, array.shape), array)
        self.launch(shapes)
        self.wait()
        results = {}
        for spec, shape in zip(self._outputs, self._output_shapes(shapes), strict=True):
            if not outputs or spec.name in outputs:
                results[spec.name] = _view(self._host[spec.name], numpy_dtype(spec.dtype), shape)
        return results

    def launch(self, shapes: Shapes, *, copies: bool = True) -> None:
        """Start a batch of these input shapes; what is in pinned memory goes in, results come to pinned memory.

        Args:
            copies: False computes on what is in device memory: what the GPU alone takes, for measuring.
        """
        if self._engine.options.cuda_graphs == 0:
            self._enqueue(shapes, copies)
            return
        key = (*shapes, ((int(copies),)))
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._capture(shapes, copies, key)
        else:
            self._graphs.move_to_end(key)
        cuda.checked(self._cuda.cudaGraphLaunch(captured.executable, self.stream), "launching a batch")

    def wait(self) -> None:
        """Wait for all that was launched, without the GIL."""
        cuda.checked(self._cuda.cudaEventRecord(self._event, self.stream), "recording an event")
        cuda.checked(self._cuda.cudaEventSynchronize(self._event), "running a batch")

    def close(self) -> None:
        for graph in self._graphs.values():
            self._destroy(graph)
        self._graphs.clear()
        self._contexts.clear()
        for memory in (*self._host.values(), *self._device.values()):
            memory.close()
        self._cuda.cudaEventDestroy(self._event)
        self._cuda.cudaStreamDestroy(self.stream)

    # Internals

    def _enqueue(self, shapes: Shapes, copies: bool) -> None:
        context = self._prepared(shapes)
        cudart = self._cuda
        if copies:
            for spec, shape in zip(self._inputs, shapes, strict=True):
                self._copy(spec, shape, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        if not context.execute_async_v3(int(self.stream)):
            reason = self._engine.library.messages.take_errors() or "no reason given"
            cuda.checked((cudart.cudaPeekAtLastError()[0],), "running a batch")
            raise WorkerError("INTERNAL", f"TensorRT cannot run the batch: {reason}")
        if copies:
            for spec, shape in zip(self._outputs, self._output_shapes(shapes), strict=True):
                self._copy(spec, shape, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, spec: TensorSpec, shape: tuple[int, ...], kind: Any) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * numpy_dtype(spec.dtype).itemsize
        host, device = self._host[spec.name].pointer, self._device[spec.name].pointer
        inward = kind == self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        to, source = (device, host) if inward else (host, device)
        cuda.checked(self._cuda.cudaMemcpyAsync(to, source, size, kind, self.stream), f"copying {spec.name}")

    def _capture(self, shapes: Shapes, copies: bool, key: Shapes) -> _Graph:
        # Once outside of a capture: TensorRT sets up for new shapes in the first call.
        self._enqueue(shapes, copies)
        self.wait()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.checked(self._cuda.cudaStreamBeginCapture(self.stream, mode), "capturing a batch")
        try:
            self._enqueue(shapes, copies)
        finally:
            graph = cuda.checked(self._cuda.cudaStreamEndCapture(self.stream), "capturing a batch")
        executable = cuda.checked(self._cuda.cudaGraphInstantiate(graph, 0), "instantiating a graph")
        while len(self._graphs) >= self._engine.options.cuda_graphs:
            self._destroy(self._graphs.popitem(last=False)[1])
        captured = self._graphs[key] = _Graph(executable, graph)
        return captured

    def _destroy(self, captured: _Graph) -> None:
        self._cuda.cudaGraphExecDestroy(captured.executable)
        self._cuda.cudaGraphDestroy(captured.graph)

    def _prepared(self, shapes: Shapes) -> Any:
        batch = shapes[0][0] if self._engine.signature.batched and shapes else 1
        context = self._context(profile_for(batch, self._engine.profiles) if self._engine.signature.batched else 0)
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if tuple(context.get_tensor_shape(spec.name)) != shape and not context.set_input_shape(spec.name, shape):
                reason = self._engine.library.messages.take_errors()
                raise WorkerError("INVALID_ARGUMENT", f"input {spec.name!r} of shape {list(shape)}: {reason}")
        return context

    def _context(self, profile: int) -> Any:
        context = self._contexts.get(profile)
        if context is not None:
            return context
        context = self._engine.engine.create_execution_context()
        if context is None:
            reason = self._engine.library.messages.take_errors() or "no reason given"
            code = "RESOURCE_EXHAUSTED" if "memory" in reason.lower() else "INTERNAL"
            raise WorkerError(code, f"TensorRT cannot make an execution context: {reason}")
        if profile and not context.set_optimization_profile_async(profile, int(self.stream)):
            raise WorkerError(
                "INTERNAL", f"optimization profile {profile}: {self._engine.library.messages.take_errors()}"
            )
        for name, memory in self._device.items():
            context.set_tensor_address(name, memory.pointer)
        self._contexts[profile] = context
        return context

    def _output_shapes(self, shapes: Shapes) -> Shapes:
        batch = shapes[0][0] if self._engine.signature.batched and shapes else 1
        profile = profile_for(batch, self._engine.profiles) if self._engine.signature.batched else 0
        context = self._prepared(shapes) if any(-1 in spec.shape[1:] for spec in self._outputs) else None
        if context is None:
            return tuple((batch, *s.shape[1:]) if self._engine.signature.batched else s.shape for s in self._outputs)
        return tuple(tuple(self._contexts[profile].get_tensor_shape(spec.name)) for spec in self._outputs)

    def _largest(self, spec: TensorSpec) -> int:
        """Bytes of a tensor at the end of the largest profile."""
        engine = self._engine.engine
        if spec in self._inputs:
            shape = engine.get_tensor_profile_shape(spec.name, 0)[2]
        else:
            shape = (self._engine.profiles[0].max, *spec.shape[1:]) if self._engine.signature.batched else spec.shape
            if any(d < 0 for d in shape):
                context = engine.create_execution_context()
                for given in self._inputs:
                    context.set_input_shape(given.name, engine.get_tensor_profile_shape(given.name, 0)[2])
                shape = context.get_tensor_shape(spec.name)
                if any(d < 0 for d in shape):
                    raise WorkerError(
                        "FAILED_PRECONDITION", f"the shape of output {spec.name!r} depends on the data: not supported"
                    )
        return int(np.prod(tuple(shape), dtype=np.int64)) * numpy_dtype(spec.dtype).itemsize


def _view(memory: cuda.Memory, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = (ctypes.c_uint8 * size).from_address(memory.pointer)
    array: Array = np.frombuffer(memoryview(raw), dtype=dtype).reshape(shape)
    return array
