"""One slot of an instance's ring: device memory for a batch, events that tie its copies to its computation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.backends.tensorrt import cuda


class Slot:
    """Device memory for every tensor at its largest, and pinned memory where a caller's own is not.

    Args:
        sizes: bytes by tensor.
        spinning: whether the host waits for `done` in a loop.
    """

    def __init__(self, index: int, sizes: Mapping[str, int], *, spinning: bool) -> None:
        runtime = cuda.runtime()
        self.index = index
        # Queued by `launch` and not known to be done.
        self.pending = False
        self._sizes = dict(sizes)
        self._host: dict[str, cuda.Memory] = {}
        self.device: dict[str, int] = {}
        with ExitStack() as undo:
            self._undo = undo
            waiting = 0 if spinning else runtime.cudaEventBlockingSync
            self.arrived = self._event(runtime, 0)
            self.computed = self._event(runtime, 0)
            self.foreign = self._event(runtime, 0)
            self.done = self._event(runtime, waiting)
            for name, size in sizes.items():
                memory = cuda.Memory(size)
                undo.callback(memory.close)
                self.device[name] = memory.pointer
            self._undo = undo.pop_all()

    def host(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Pinned memory for a tensor, made when it is first wanted and kept."""
        memory = self._host.get(name)
        if memory is None:
            memory = self._host[name] = cuda.Memory(self._sizes[name], pinned=True)
            self._undo.callback(memory.close)
        return memory.view(dtype, shape)

    def close(self) -> None:
        """Free everything; nothing may be running. A second call does nothing."""
        undo, self._undo = self._undo, ExitStack()
        undo.close()

    def _event(self, runtime: Any, waiting: int) -> Any:
        event = cuda.checked(
            runtime.cudaEventCreateWithFlags(waiting | runtime.cudaEventDisableTiming), "making an event"
        )
        self._undo.callback(runtime.cudaEventDestroy, event)
        return event
