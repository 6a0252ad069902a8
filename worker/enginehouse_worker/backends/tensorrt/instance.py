"""One execution context's worth of work: a ring of slots whose copies run while another slot computes.

Three streams are tied by events: copies in, computation, copies out. Host memory that is registered with the device
(`host_memory.PINNED`) is read and written by the copy engines where it is; other memory goes through a slot's own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from enginehouse_worker.backends.base import Array, Pieces, TensorSpec, numpy_dtype
from enginehouse_worker.backends.tensorrt import cuda, device_arrays
from enginehouse_worker.backends.tensorrt.computation import Computation
from enginehouse_worker.backends.tensorrt.contexts import Contexts
from enginehouse_worker.backends.tensorrt.device_arrays import DeviceView
from enginehouse_worker.backends.tensorrt.footprint import Footprint, shortage
from enginehouse_worker.backends.tensorrt.layouts import Layouts, Shapes
from enginehouse_worker.backends.tensorrt.ring import Slot
from enginehouse_worker.backends.tensorrt.transfers import Ticket, Transfers
from enginehouse_worker.errors import WorkerError

if TYPE_CHECKING:
    from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine

_THREAD = threading.local()


class TensorRtInstance:
    """One thread runs, begins and launches; another may finish. At most `ring` batches are begun and not finished."""

    def __init__(self, engine: TensorRtEngine) -> None:
        cuda.open_device(f"cuda:{engine.device.index}")  # current in this thread
        self._engine = engine
        self._cuda = cuda.runtime()
        self._inputs = engine.signature.inputs
        self._outputs = engine.signature.outputs
        self._wanted = {spec.name: numpy_dtype(spec.dtype) for spec in (*self._inputs, *self._outputs)}
        self.ring = engine.options.ring
        self._slots: list[Slot] = []
        self._turn = 0
        self._bare = False
        with ExitStack() as undo:
            # What was made is undone in reverse when something after it fails.
            own_profile = engine.take_profile()
            undo.callback(engine.give_profile, own_profile)
            self._arriving, self.stream, self._leaving = (self._new_stream(undo) for _ in range(3))
            waiting = 0 if engine.options.spinning else self._cuda.cudaEventBlockingSync
            flags = waiting | self._cuda.cudaEventDisableTiming
            self._event = cuda.checked(self._cuda.cudaEventCreateWithFlags(flags), "making an event")
            undo.callback(self._cuda.cudaEventDestroy, self._event)
            self._make(undo, own_profile)
            self._undo: ExitStack | None = undo.pop_all()
        self._free = list(reversed(self._slots))

    def run(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, into: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Compute the named outputs, all when `outputs` is empty. Arrays are as the signature says.

        Args:
            inputs: NumPy arrays, or arrays in device memory with a `__cuda_array_interface__`.
            into: arrays of either kind to write outputs to; the others are views of memory that the next `run` reuses.

        Raises:
            WorkerError: INVALID_ARGUMENT for an input of another type, a shape that the engine was not built for, or
                memory that is not this device's or not C-contiguous.
        """
        names = list(outputs) or [spec.name for spec in self._outputs]
        given = dict(into or {})
        ticket = self.begin(inputs, {name: given.get(name) for name in names})
        self.finish(ticket)
        views = {name: view.astype(self._wanted[name], copy=False) for name, view in ticket.views.items()}
        return {name: given[name] if name in given else views[name] for name in names}

    def output_shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs for inputs of these shapes.

        Raises:
            WorkerError: INVALID_ARGUMENT for shapes that the engine was not built for.
        """
        layout = self._layouts.get(tuple(tuple(_given(inputs, spec)) for spec in self._inputs))
        return {spec.name: shape for spec, shape in zip(self._outputs, layout.outputs, strict=True)}

    def begin(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Ticket:
        """Queue a batch: copies in, computation, copies out. Inputs and outputs must stay as they are until `finish`.

        Args:
            inputs: as for `run`.
            outputs: where each wanted output goes: an array of either kind, or None for memory of the slot's own.

        Raises:
            WorkerError: as `run`; FAILED_PRECONDITION when the ring is full.
        """
        arrays = [self._input(spec, _given(inputs, spec)) for spec in self._inputs]
        shapes: Shapes = tuple(array.shape for array in arrays)
        layout = self._layouts.get(shapes)
        results = dict(zip((spec.name for spec in self._outputs), layout.outputs, strict=True))
        places = {name: self._output(name, outputs[name], results) for name in outputs}
        captured = self._computation.prepare(shapes)
        alone = len(self._free) == len(self._slots)
        try:
            slot = self._free.pop()
        except IndexError:
            raise WorkerError("FAILED_PRECONDITION", f"{self.ring} batches are begun already; finish one") from None
        ticket = Ticket(slot)
        # A lone batch goes through one stream, which spares the events; one behind it still overlaps.
        arriving, leaving = (self.stream, self.stream) if alone else (self._arriving, self._leaving)
        try:
            self._settle(slot)
            for spec, array in zip(self._inputs, arrays, strict=True):
                self._transfers.bring(slot, spec.name, array, layout, arriving)
            if not alone:
                self._transfers.order(slot.arrived, arriving, self.stream)
            self._computation.queue(captured, shapes, slot)
            if not alone:
                self._transfers.order(slot.computed, self.stream, leaving)
            for name, place in places.items():
                self._transfers.fetch(ticket, name, place, results[name], layout, leaving)
            self._check(self._cuda.cudaEventRecord(slot.done, leaving), "recording an event")
        except BaseException:
            try:
                self._drain()  # it reads and writes memory that the caller is about to reuse
            finally:
                self._free.append(slot)
            raise
        return ticket

    def finish(self, ticket: Ticket) -> None:
        """Wait for a batch, without the GIL; its outputs are then where they were to go."""
        self._enter()
        try:
            self._check(self._cuda.cudaEventSynchronize(ticket.slot.done), "running a batch")
            for place, view in ticket.late:
                np.copyto(place, view, casting="same_kind")
        finally:
            self._free.append(ticket.slot)

    def launch(self, shapes: Shapes, *, copies: bool = True) -> None:
        """Queue a batch of these input shapes on what is in the slots' memory, for measuring.

        Args:
            copies: True goes from pinned memory to pinned memory, and several overlap over the ring; False from
                device memory to device memory, which is what the GPU alone takes.

        Raises:
            WorkerError: FAILED_PRECONDITION for copies between `begin` and `finish`; as `run` for the shapes.
        """
        if len(self._free) < len(self._slots):
            if copies:
                raise WorkerError("FAILED_PRECONDITION", "a batch was begun: its slot's memory is in use")
            self._drain()  # what was begun has left the device's memory
        captured = self._computation.prepare(shapes)
        # What the last batch left is still in the slot that was freed last.
        slot = self._slots[self._turn] if copies or not self._free else self._free[-1]
        if not copies:
            self._bare = True
            self._computation.queue(captured, shapes, slot)
            return
        layout = self._layouts.get(shapes)
        alone = not any(other.pending for other in self._slots)
        arriving, leaving = (self.stream, self.stream) if alone else (self._arriving, self._leaving)
        if slot.pending:
            self._check(self._cuda.cudaStreamWaitEvent(arriving, slot.done, 0), "waiting for a slot")
        for spec, shape in zip(self._inputs, shapes, strict=True):
            source = slot.host(spec.name, self._layouts.types[spec.name], shape)
            self._transfers.bring(slot, spec.name, source, layout, arriving, pinned=True)
        if not alone:
            self._transfers.order(slot.arrived, arriving, self.stream)
        self._computation.queue(captured, shapes, slot)
        if not alone:
            self._transfers.order(slot.computed, self.stream, leaving)
        ticket = Ticket(slot)
        for spec, shape in zip(self._outputs, layout.outputs, strict=True):
            self._transfers.fetch(ticket, spec.name, None, shape, layout, leaving)
        self._check(self._cuda.cudaEventRecord(slot.done, leaving), "recording an event")
        slot.pending = True
        self._turn = (self._turn + 1) % len(self._slots)

    def wait(self) -> None:
        """Wait for all that was launched, without the GIL."""
        pending = [slot for slot in self._slots if slot.pending]
        for slot in pending:
            self._settle(slot)
        if self._bare or not pending:
            self._bare = False
            self._check(self._cuda.cudaEventRecord(self._event, self.stream), "recording an event")
            self._check(self._cuda.cudaEventSynchronize(self._event), "running a batch")

    def close(self) -> None:
        """Free everything, once what was queued is done. A second call does nothing."""
        undo, self._undo = self._undo, None
        if undo is None:
            return
        with undo:
            for stream in (self._arriving, self.stream, self._leaving):
                self._cuda.cudaStreamSynchronize(stream)

    # Internals

    def _new_stream(self, undo: ExitStack) -> Any:
        stream = self._check(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking), "making a stream")
        undo.callback(self._cuda.cudaStreamDestroy, stream)
        return stream

    def _make(self, undo: ExitStack, own_profile: int | None) -> None:
        engine = self._engine
        activations = engine.activation_bytes()
        needed = Footprint(activations, 0, self.ring)
        try:
            contexts = Contexts(engine, self.stream, own_profile)
            undo.callback(contexts.close)
            self._layouts = Layouts(engine, contexts, own_profile)
            self._transfers = Transfers(self._layouts.types)
            sizes = self._layouts.largest
            needed = Footprint(activations, sum(sizes.values()), self.ring)
            for index in range(self.ring):
                slot = Slot(index, sizes, spinning=engine.options.spinning)
                undo.callback(slot.close)
                self._slots.append(slot)
        except WorkerError as error:
            if error.code != "RESOURCE_EXHAUSTED":
                raise
            message = shortage(needed, engine.weight_bytes, cuda.free_memory())
            raise WorkerError("RESOURCE_EXHAUSTED", message) from error
        # Rows that a batch is padded with must be values that the network can take, whatever the memory held.
        for slot in self._slots:
            for spec in self._inputs:
                pointer, size = slot.device[spec.name], sizes[spec.name]
                self._check(self._cuda.cudaMemsetAsync(pointer, 0, size, self.stream), "clearing memory")
        self._check(self._cuda.cudaStreamSynchronize(self.stream), "clearing memory")
        self._computation = Computation(engine, contexts, self._layouts, self._slots, self.stream, self._drain)
        undo.callback(self._computation.close)
        engine.count_instance(needed.total)
        undo.callback(engine.count_instance, -needed.total)

    def _input(self, spec: TensorSpec, value: Any) -> Array | Pieces | DeviceView:
        name, wanted = f"input {spec.name!r}", self._wanted[spec.name]
        if device_arrays.is_device_array(value):
            view = device_arrays.read_interface(name, value)
            device_arrays.check_type(name, view, self._layouts.types[spec.name], spec.dtype, wanted)
            device_arrays.check_memory(name, view, self._engine.device.index)
            return view
        array = value if isinstance(value, Pieces) else np.asarray(value)
        if array.dtype != wanted:
            raise WorkerError("INVALID_ARGUMENT", f"{name} is {array.dtype}; expected {spec.dtype}")
        return array

    def _output(self, name: str, value: Any, shapes: Mapping[str, tuple[int, ...]]) -> Array | DeviceView | None:
        if name not in shapes:
            raise WorkerError("INVALID_ARGUMENT", f"unknown output {name!r}; known: {', '.join(shapes)}")
        what, wanted = f"output {name!r}", self._wanted[name]
        if value is None:
            return None
        if device_arrays.is_device_array(value):
            view = device_arrays.output_view(what, value, shapes[name])
            device_arrays.check_type(what, view, self._layouts.types[name], str(wanted), wanted)
            device_arrays.check_memory(what, view, self._engine.device.index)
            return view
        if not isinstance(value, np.ndarray) or value.dtype != wanted or value.shape != shapes[name]:
            raise WorkerError("INVALID_ARGUMENT", f"{what} goes to an array of {wanted} {list(shapes[name])}")
        return value

    def _settle(self, slot: Slot) -> None:
        if slot.pending:
            self._check(self._cuda.cudaEventSynchronize(slot.done), "running a batch")
            slot.pending = False

    def _drain(self) -> None:
        for stream in (self._arriving, self.stream, self._leaving):
            self._check(self._cuda.cudaStreamSynchronize(stream), "running a batch")

    def _enter(self) -> None:
        index = self._engine.device.index
        if getattr(_THREAD, "device", None) != index:
            self._check(self._cuda.cudaSetDevice(index), "making the device current")
            _THREAD.device = index

    @staticmethod
    def _check(result: tuple[Any, ...], what: str) -> Any:
        return cuda.checked(result, what)


def _given(inputs: Mapping[str, Any], spec: TensorSpec) -> Any:
    if spec.name not in inputs:
        raise WorkerError("INVALID_ARGUMENT", f"input {spec.name!r} is missing")
    return inputs[spec.name]
