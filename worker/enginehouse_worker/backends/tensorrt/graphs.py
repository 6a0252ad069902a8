"""CUDA graphs of batches: the computation alone, one for each shape and slot, so that copies overlap it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.errors import WorkerError

Shapes = tuple[tuple[int, ...], ...]
# Replays of a graph that are timed; the quickest counts, as the others met something else.
TIMED = 3
# A call of another thread can break a capture (a device synchronization does).
_ATTEMPTS = 3
_BROKEN = "cudaErrorStreamCaptureInvalidated"


@dataclass
class Captured:
    """Shapes that are captured: the context that the graphs need, a graph for each slot, and what one takes."""

    context: Any
    graphs: list[tuple[Any, Any]] = field(default_factory=list)
    seconds: float | None = None


class GraphCache:
    """Captured shapes, at most `limit` of them; the one unused for longest goes first. For one thread.

    `capture` and `discard` must not be called while the stream runs one of the graphs.
    """

    def __init__(self, limit: int, stream: Any) -> None:
        self._runtime = cuda.runtime()
        self._stream = stream
        self._limit = limit
        self._captured: OrderedDict[Shapes, Captured] = OrderedDict()

    @property
    def limit(self) -> int:
        return self._limit

    def __iter__(self) -> Iterator[Shapes]:
        return iter(self._captured)

    def get(self, shapes: Shapes) -> Captured | None:
        found = self._captured.get(shapes)
        if found is not None:
            self._captured.move_to_end(shapes)
        return found

    def launch(self, captured: Captured, slot: int) -> None:
        """Queue a captured batch."""
        executable = captured.graphs[slot][0]
        cuda.checked(self._runtime.cudaGraphLaunch(executable, self._stream), "launching a batch")

    def capture(self, shapes: Shapes, context: Any, slots: int, enqueue: Callable[[int], None]) -> Captured:
        """Capture a computation for every slot.

        Args:
            enqueue: queues the computation for a slot on the stream.
        """
        while len(self._captured) >= self._limit:
            self._destroy(self._captured.popitem(last=False)[1])
        captured = Captured(context)
        try:
            for slot in range(slots):
                captured.graphs.append(self._capture(lambda slot=slot: enqueue(slot)))  # type: ignore[misc]
        except BaseException:
            self._destroy(captured)
            raise
        self._captured[shapes] = captured
        return captured

    def seconds(self, captured: Captured, begin: Any, end: Any) -> float:
        """What one batch takes on the device, timed once; `begin` and `end` are events with timing."""
        if captured.seconds is None:
            times = []
            for _ in range(TIMED):
                cuda.checked(self._runtime.cudaEventRecord(begin, self._stream), "recording an event")
                self.launch(captured, 0)
                cuda.checked(self._runtime.cudaEventRecord(end, self._stream), "recording an event")
                cuda.checked(self._runtime.cudaEventSynchronize(end), "running a batch")
                times.append(cuda.checked(self._runtime.cudaEventElapsedTime(begin, end), "timing a batch"))
            captured.seconds = float(min(times)) / 1e3
        return captured.seconds

    def discard(self, shapes: Shapes) -> None:
        """Forget shapes, if they are captured."""
        if (captured := self._captured.pop(shapes, None)) is not None:
            self._destroy(captured)

    def close(self) -> None:
        while self._captured:
            self._destroy(self._captured.popitem()[1])

    def _capture(self, enqueue: Callable[[], None]) -> tuple[Any, Any]:
        for attempts_left in reversed(range(_ATTEMPTS)):
            # Once outside of a capture: TensorRT sets up for new shapes in the first call. And when the device was lost
            # while another try was broken, this ends the worker.
            enqueue()
            cuda.checked(self._runtime.cudaStreamSynchronize(self._stream), "running a batch")
            graph = self._captured_once(enqueue, again=attempts_left > 0)
            if graph is not None:
                break
        try:
            return cuda.checked(self._runtime.cudaGraphInstantiate(graph, 0), "instantiating a graph"), graph
        except BaseException:
            self._runtime.cudaGraphDestroy(graph)
            raise

    def _captured_once(self, enqueue: Callable[[], None], *, again: bool) -> Any | None:
        """The graph of a capture; None when it was broken from outside and is to be made `again`."""
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.checked(runtime.cudaStreamBeginCapture(self._stream, mode), "capturing a batch")
        try:
            enqueue()
        except BaseException as failure:
            # The error that broke the capture is the one to tell, not that the capture is broken.
            error, graph = runtime.cudaStreamEndCapture(self._stream)
            if int(error) != 0:
                cuda.check_alive(error, "capturing a batch")
            if graph:
                runtime.cudaGraphDestroy(graph)
            if again and _is_broken(error) and isinstance(failure, WorkerError):
                return None
            raise
        error, graph = runtime.cudaStreamEndCapture(self._stream)
        if again and _is_broken(error):
            cuda.check_alive(error, "capturing a batch")
            return None
        return cuda.checked((error, graph), "capturing a batch")

    def _destroy(self, captured: Captured) -> None:
        for executable, graph in captured.graphs:
            self._runtime.cudaGraphExecDestroy(executable)
            self._runtime.cudaGraphDestroy(graph)
        captured.graphs.clear()


def _is_broken(error: Any) -> bool:
    return getattr(error, "name", "") == _BROKEN
