"""Execution contexts of one instance. They run one after the other on one stream, so they share their activations.

A captured graph is bound to the state of the context it was captured from (TensorRT's developer guide, CUDA graphs),
so shapes that are captured have a context of their own; it costs no activation memory.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.errors import WorkerError

if TYPE_CHECKING:
    from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine


class Contexts:
    """Makes contexts over one block of memory.

    Args:
        own_profile: the profile that this instance alone may use, where contexts cannot share one.
    """

    def __init__(self, engine: TensorRtEngine, stream: Any, own_profile: int | None) -> None:
        self._engine = engine
        self._stream = stream
        self._own_profile = own_profile
        self._size = engine.activation_bytes()
        self._activations = cuda.Memory(max(self._size, 256))
        self._shared: dict[int, Any] = {}

    def shared(self, profile: int) -> Any:
        """The context of a profile for all shapes that are not captured."""
        if profile not in self._shared:
            self._shared[profile] = self._new(profile)
        return self._shared[profile]

    def for_capture(self, profile: int) -> Any:
        """A context for one capture; the only one there is, where contexts cannot share a profile."""
        return self.shared(profile) if self._own_profile is not None else self._new(profile)

    def close(self) -> None:
        self._shared.clear()
        self._activations.close()

    def _new(self, profile: int) -> Any:
        context = self._engine.new_context()
        _set_memory(context, self._activations.pointer, self._size)
        active = context.active_optimization_profile == profile
        if not active and not context.set_optimization_profile_async(profile, int(self._stream)):
            reason = self._engine.library.messages.take_errors()
            raise WorkerError("INTERNAL", f"optimization profile {profile}: {reason}")
        return context


def create(engine: Any, strategies: Any | None) -> Any:
    """A context without activation memory, or None; `strategies` is TensorRT 10's enumeration, where it has it."""
    if strategies is not None:
        return engine.create_execution_context(strategies.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def _set_memory(context: Any, pointer: int, size: int) -> None:
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(pointer, size)
        return
    try:
        context.device_memory = pointer
    except TypeError:  # TensorRT 8.5 takes a capsule
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        context.device_memory = capsule(pointer, None, None)
