"""One stream of work on a plan: a context, a stream, pinned host memory, device memory, and CUDA graphs by shape.

One graph holds the copy in, the computation and the copy out, so that a batch costs the host one launch and one wait.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from enginehouse_worker.backends.base import Array, numpy_dtype
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.shapes import profile_for
from enginehouse_worker.errors import WorkerError

if TYPE_CHECKING:
    from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine

Shapes = tuple[tuple[int, ...], ...]
# Shapes whose buffers and views are kept; with every dimension dynamic there is no end of them.
MAX_BATCHES = 256


@dataclass
class _Graph:
    """A captured batch: launched as one."""

    executable: Any
    graph: Any


@dataclass(frozen=True)
class _Copy:
    """One copy between pinned and device memory."""

    to: int
    source: int
    size: int
    kind: Any
    what: str


@dataclass(frozen=True)
class _Batch:
    """What is the same for every batch of these input shapes: views of pinned memory, and copies."""

    context: Any
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    copies_in: tuple[_Copy, ...]
    copies_out: tuple[_Copy, ...]


class TensorRtInstance:
    """`run` returns views of the instance's pinned memory, good until the next `run`. For one thread."""

    def __init__(self, engine: TensorRtEngine) -> None:
        cuda.open_device(f"cuda:{engine.device.index}")  # current in this thread
        self._engine = engine
        self._cuda = cuda.runtime()
        self._inputs = engine.signature.inputs
        self._outputs = engine.signature.outputs
        self._types = {spec.name: engine.tensor_type(spec) for spec in (*self._inputs, *self._outputs)}
        self._contexts: dict[int, Any] = {}
        self._batches: OrderedDict[Shapes, _Batch] = OrderedDict()
        self._graphs: OrderedDict[tuple[Shapes, bool], _Graph] = OrderedDict()
        self._host: dict[str, cuda.Memory] = {}
        self._device: dict[str, cuda.Memory] = {}
        with ExitStack() as undo:
            # What was made is undone in reverse when something after it fails.
            self._undo = undo
            self.stream = self._made(
                self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking),
                "making a stream",
                self._cuda.cudaStreamDestroy,
            )
            flags = 0 if engine.options.spinning else self._cuda.cudaEventBlockingSync
            self._event = self._made(
                self._cuda.cudaEventCreateWithFlags(flags | self._cuda.cudaEventDisableTiming),
                "making an event",
                self._cuda.cudaEventDestroy,
            )
            undo.callback(self._contexts.clear)
            self._contexts[0] = engine.new_context()
            for name, size in self._largest(self._contexts[0]).items():
                for memories, pinned in ((self._host, True), (self._device, False)):
                    memories[name] = cuda.Memory(size, pinned=pinned)
                    undo.callback(memories[name].close)
            undo.callback(self._batches.clear)
            undo.callback(self._destroy_graphs)
            self._set_addresses(self._contexts[0])
            self._undo = undo.pop_all()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says.

        Raises:
            WorkerError: INVALID_ARGUMENT for an input of another type, or a shape that the engine was not built for.
        """
        arrays = [np.asarray(inputs[spec.name]) for spec in self._inputs]
        for spec, array in zip(self._inputs, arrays, strict=True):
            if array.dtype != numpy_dtype(spec.dtype):
                raise WorkerError("INVALID_ARGUMENT", f"input {spec.name!r} is {array.dtype}; expected {spec.dtype}")
        shapes: Shapes = tuple(array.shape for array in arrays)
        batch = self._batch(shapes)
        for view, array in zip(batch.inputs, arrays, strict=True):
            np.copyto(view, array, casting="same_kind")
        self.launch(shapes)
        self.wait()
        results = {}
        for spec, view in zip(self._outputs, batch.outputs, strict=True):
            if not outputs or spec.name in outputs:
                results[spec.name] = view.astype(numpy_dtype(spec.dtype), copy=False)
        return results

    def launch(self, shapes: Shapes, *, copies: bool = True) -> None:
        """Start a batch of these input shapes; what is in pinned memory goes in, results come to pinned memory.

        Args:
            copies: False computes on what is in device memory: what the GPU alone takes, for measuring.
        """
        key = (shapes, copies)
        captured = self._graphs.get(key)
        if captured is None:
            batch = self._batch(shapes)
            if self._engine.options.cuda_graphs == 0:
                self._enqueue(batch, shapes, copies)
                return
            captured = self._capture(batch, shapes, copies)
        else:
            self._graphs.move_to_end(key)
        cuda.checked(self._cuda.cudaGraphLaunch(captured.executable, self.stream), "launching a batch")

    def wait(self) -> None:
        """Wait for all that was launched, without the GIL."""
        cuda.checked(self._cuda.cudaEventRecord(self._event, self.stream), "recording an event")
        cuda.checked(self._cuda.cudaEventSynchronize(self._event), "running a batch")

    def close(self) -> None:
        """Free everything, once what was launched is done. A second call does nothing."""
        undo, self._undo = self._undo, ExitStack()
        with undo:
            self._cuda.cudaStreamSynchronize(self.stream)

    # Internals

    def _made(self, result: tuple[Any, ...], what: str, destroy: Any) -> Any:
        value = cuda.checked(result, what)
        self._undo.callback(destroy, value)
        return value

    def _profile(self, shapes: Shapes) -> int:
        if not self._engine.signature.batched or not shapes:
            return 0
        return profile_for(shapes[0][0] if shapes[0] else 1, self._engine.profiles)

    def _batch(self, shapes: Shapes) -> _Batch:
        batch = self._batches.get(shapes)
        if batch is not None:
            return batch
        context = self._context(self._profile(shapes))
        self._set_shapes(context, shapes)
        found = self._prepare(context, shapes, [tuple(context.get_tensor_shape(o.name)) for o in self._outputs])
        while len(self._batches) >= MAX_BATCHES:
            self._batches.popitem(last=False)
        self._batches[shapes] = found
        return found

    def _prepare(self, context: Any, shapes: Shapes, results: Sequence[tuple[int, ...]]) -> _Batch:
        kinds = self._cuda.cudaMemcpyKind
        views: list[Array] = []
        copies: list[_Copy] = []
        for spec, shape in zip((*self._inputs, *self._outputs), (*shapes, *results), strict=True):
            host, device = self._host[spec.name], self._device[spec.name]
            dtype = self._types[spec.name]
            size = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or size > host.size:
                raise WorkerError(
                    "INVALID_ARGUMENT", f"tensor {spec.name!r} of shape {list(shape)} is larger than the engine allows"
                )
            views.append(host.view(dtype, shape))
            inward = len(copies) < len(self._inputs)
            to, source = (device, host) if inward else (host, device)
            kind = kinds.cudaMemcpyHostToDevice if inward else kinds.cudaMemcpyDeviceToHost
            copies.append(_Copy(to.pointer, source.pointer, size, kind, f"copying {spec.name}"))
        count = len(self._inputs)
        return _Batch(context, tuple(views[:count]), tuple(views[count:]), tuple(copies[:count]), tuple(copies[count:]))

    def _set_shapes(self, context: Any, shapes: Shapes) -> None:
        """The context keeps the shapes of its last batch, which may have been another one's."""
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if tuple(context.get_tensor_shape(spec.name)) != shape and not context.set_input_shape(spec.name, shape):
                reason = self._engine.library.messages.take_errors() or "not what the engine was built for"
                raise WorkerError("INVALID_ARGUMENT", f"input {spec.name!r} of shape {list(shape)}: {reason}")

    def _enqueue(self, batch: _Batch, shapes: Shapes, copies: bool) -> None:
        self._set_shapes(batch.context, shapes)
        if copies:
            self._copy(batch.copies_in)
        if not batch.context.execute_async_v3(int(self.stream)):
            reason = self._engine.library.messages.take_errors() or "no reason given"
            cuda.checked((self._cuda.cudaPeekAtLastError()[0],), "running a batch")
            raise WorkerError("INTERNAL", f"TensorRT cannot run the batch: {reason}")
        if copies:
            self._copy(batch.copies_out)

    def _copy(self, copies: tuple[_Copy, ...]) -> None:
        for copy in copies:
            if copy.size:
                cuda.checked(
                    self._cuda.cudaMemcpyAsync(copy.to, copy.source, copy.size, copy.kind, self.stream), copy.what
                )

    def _capture(self, batch: _Batch, shapes: Shapes, copies: bool) -> _Graph:
        # Once outside of a capture: TensorRT sets up for new shapes in the first call.
        self._enqueue(batch, shapes, copies)
        self.wait()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.checked(self._cuda.cudaStreamBeginCapture(self.stream, mode), "capturing a batch")
        try:
            self._enqueue(batch, shapes, copies)
        except BaseException:
            # The error that broke the capture is the one to tell, not that the capture is broken.
            _, broken = self._cuda.cudaStreamEndCapture(self.stream)
            if broken:
                self._cuda.cudaGraphDestroy(broken)
            raise
        graph = cuda.checked(self._cuda.cudaStreamEndCapture(self.stream), "capturing a batch")
        try:
            executable = cuda.checked(self._cuda.cudaGraphInstantiate(graph, 0), "instantiating a graph")
        except BaseException:
            self._cuda.cudaGraphDestroy(graph)
            raise
        while len(self._graphs) >= self._engine.options.cuda_graphs:
            self._destroy(self._graphs.popitem(last=False)[1])
        captured = self._graphs[shapes, copies] = _Graph(executable, graph)
        return captured

    def _destroy_graphs(self) -> None:
        while self._graphs:
            self._destroy(self._graphs.popitem()[1])

    def _destroy(self, captured: _Graph) -> None:
        self._cuda.cudaGraphExecDestroy(captured.executable)
        self._cuda.cudaGraphDestroy(captured.graph)

    def _context(self, profile: int) -> Any:
        context = self._contexts.get(profile)
        if context is not None:
            return context
        context = self._engine.new_context()
        if not context.set_optimization_profile_async(profile, int(self.stream)):
            reason = self._engine.library.messages.take_errors()
            raise WorkerError("INTERNAL", f"optimization profile {profile}: {reason}")
        self._set_addresses(context)
        self._contexts[profile] = context
        return context

    def _set_addresses(self, context: Any) -> None:
        for name, memory in self._device.items():
            if not context.set_tensor_address(name, memory.pointer):
                reason = self._engine.library.messages.take_errors()
                raise WorkerError("INTERNAL", f"the memory of tensor {name!r}: {reason}")

    def _largest(self, context: Any) -> dict[str, int]:
        """Bytes of each tensor at the largest shapes of any profile.

        Raises:
            WorkerError: FAILED_PRECONDITION for an output whose shape depends on the data.
        """
        sizes = {}
        largest = [tuple(self._engine.engine.get_tensor_profile_shape(i.name, 0)[2]) for i in self._inputs]
        for spec, shape in zip(self._inputs, largest, strict=True):
            sizes[spec.name] = math.prod(shape) * self._types[spec.name].itemsize
        for spec, shape in zip(self._outputs, self._output_shapes(context, tuple(largest)), strict=True):
            if min(shape, default=0) < 0:
                raise WorkerError(
                    "FAILED_PRECONDITION", f"the shape of output {spec.name!r} depends on the data: not supported"
                )
            sizes[spec.name] = math.prod(shape) * self._types[spec.name].itemsize
        return sizes

    def _output_shapes(self, context: Any, largest: Shapes) -> list[tuple[int, ...]]:
        batched = self._engine.signature.batched
        if any(d < 0 for spec in self._outputs for d in spec.shape[1 if batched else 0 :]):
            self._set_shapes(context, largest)
            return [tuple(context.get_tensor_shape(spec.name)) for spec in self._outputs]
        first = self._engine.profiles[0].max
        return [(first, *spec.shape[1:]) if batched else spec.shape for spec in self._outputs]
