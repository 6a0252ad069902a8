"""Queues what a batch computes: its graph where its shapes are captured, a larger batch's where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.graphs import Captured, GraphCache
from enginehouse_worker.backends.tensorrt.layouts import Layouts, Shapes
from enginehouse_worker.backends.tensorrt.padding import PaddingPolicy
from enginehouse_worker.errors import WorkerError

if TYPE_CHECKING:
    from enginehouse_worker.backends.tensorrt.contexts import Contexts
    from enginehouse_worker.backends.tensorrt.ring import Slot
    from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine


class Computation:
    """What one instance computes, on one stream. For one thread.

    Args:
        drain: waits until nothing of the instance runs; called before anything is captured or timed.
    """

    def __init__(
        self,
        engine: TensorRtEngine,
        contexts: Contexts,
        layouts: Layouts,
        slots: list[Slot],
        stream: Any,
        drain: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._contexts = contexts
        self._layouts = layouts
        self._slots = slots
        self._stream = stream
        self._drain = drain
        self._graphs = GraphCache(engine.options.cuda_graphs, stream)
        self._pads = engine.options.padding == "auto" and engine.signature.batched
        self._padding = PaddingPolicy()
        runtime = cuda.runtime()
        with ExitStack() as undo:
            undo.callback(self._graphs.close)
            self._timers = []
            for _ in range(2 if self._pads else 0):
                event = cuda.checked(runtime.cudaEventCreateWithFlags(runtime.cudaEventDefault), "making an event")
                undo.callback(runtime.cudaEventDestroy, event)
                self._timers.append(event)
            self._undo = undo.pop_all()

    def prepare(self, shapes: Shapes) -> Captured | None:
        """The captured batch to run these shapes in; None when nothing is captured. Captures what is new."""
        graphs = self._graphs
        captured = graphs.get(shapes)
        if captured is not None or not graphs.limit:
            return captured
        rows = _rows(shapes) if self._pads else None
        if rows is None:
            self._drain()
            return self._capture(shapes)
        group = tuple(shape[1:] for shape in shapes)
        known = self._padding.known(group, rows)
        if known is not None and (captured := graphs.get(_with_rows(shapes, known))) is not None:
            return captured
        self._drain()
        sizes = [s[0][0] for s in graphs if s[0] and tuple(shape[1:] for shape in s) == group]
        usual = self._engine.profiles[self._layouts.get(shapes).profile].opt
        chosen = self._padding.choose(group, rows, usual, sizes, lambda size: self._seconds(_with_rows(shapes, size)))
        if chosen != rows:
            graphs.discard(shapes)
        return self._captured(_with_rows(shapes, chosen))

    def queue(self, captured: Captured | None, shapes: Shapes, slot: Slot) -> None:
        """Queue the computation of what is in a slot; results beyond the batch's own rows are nobody's."""
        if captured is not None:
            self._graphs.launch(captured, slot.index)
            return
        self._enqueue(self._contexts.shared(self._layouts.get(shapes).profile), shapes, slot)

    def close(self) -> None:
        undo, self._undo = self._undo, ExitStack()
        undo.close()

    def _captured(self, shapes: Shapes) -> Captured:
        return self._graphs.get(shapes) or self._capture(shapes)

    def _capture(self, shapes: Shapes) -> Captured:
        context = self._contexts.for_capture(self._layouts.get(shapes).profile)
        return self._graphs.capture(
            shapes, context, len(self._slots), lambda slot: self._enqueue(context, shapes, self._slots[slot])
        )

    def _seconds(self, shapes: Shapes) -> float:
        return self._graphs.seconds(self._captured(shapes), *self._timers)

    def _enqueue(self, context: Any, shapes: Shapes, slot: Slot) -> None:
        self._layouts.set_shapes(context, shapes)
        for name, pointer in slot.device.items():
            if not context.set_tensor_address(name, pointer):
                reason = self._engine.library.messages.take_errors()
                raise WorkerError("INTERNAL", f"the memory of tensor {name!r}: {reason}")
        if not context.execute_async_v3(int(self._stream)):
            reason = self._engine.library.messages.take_errors() or "no reason given"
            cuda.checked((cuda.runtime().cudaPeekAtLastError()[0],), "running a batch")
            raise WorkerError("INTERNAL", f"TensorRT cannot run the batch: {reason}")


def _rows(shapes: Shapes) -> int | None:
    """Dimension 0 where all inputs share it."""
    rows = {shape[0] if shape else None for shape in shapes}
    return rows.pop() if len(rows) == 1 else None


def _with_rows(shapes: Shapes, rows: int) -> Shapes:
    return tuple((rows, *shape[1:]) for shape in shapes)
