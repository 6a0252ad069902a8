"""CUDA and TensorRT that keep count: memory is real, streams run late and in a random order that their events allow.

The real ones need a GPU; these show what they cannot: that nothing is left behind whichever call fails, and that no
result depends on a copy that happened to be quick.
"""

# ruff: noqa: N815

from __future__ import annotations

import ctypes
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec
from enginehouse_worker.backends.tensorrt import cuda, host_memory
from enginehouse_worker.backends.tensorrt.library import Messages
from enginehouse_worker.backends.tensorrt.options import load_options
from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine

LEGACY = 1


class Event:
    def __init__(self) -> None:
        self.recorded = self.reached = 0
        self.time = 0.0


class Cuda:
    """`fail_at`: the number of the call that makes something and fails. Everything is checked: what is freed exists."""

    cudaStreamNonBlocking = cudaEventBlockingSync = cudaEventDisableTiming = 1
    cudaEventDefault = 0
    cudaHostRegisterPortable, cudaHostRegisterReadOnly, cudaIpcMemLazyEnablePeerAccess = 1, 8, 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="device"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)
    cudaIpcMemHandle_t = SimpleNamespace

    def __init__(self, fail_at: int = -1, seed: int = 0) -> None:
        self.fail_at = fail_at
        self.made = 0
        self.alive: dict[int, Any] = {}
        self.calls: Counter[str] = Counter()
        self.streams: dict[int, deque[Any]] = {LEGACY: deque()}
        self.capturing: dict[int, Any] = {}
        self.registered: dict[int, tuple[int, int]] = {}
        self.reads_only = True  # registers what is mapped for reading
        self.registers = True
        self.exported: dict[bytes, Any] = {}
        self.opened: Counter[int] = Counter()
        self.copying: set[tuple[int, int, int, object]] = set()
        self.free_bytes = 1 << 40
        self.broken_captures = 0  # captures that are yet to be broken, by a call of another thread
        self.lost = ""  # the sticky error that the device is left with
        self.now = 0.0
        self._random = random.Random(seed)
        self._lock = threading.RLock()

    def kept(self) -> Counter[str]:
        """How many of each kind are alive."""
        return Counter(kind for kind, _ in self.alive.values())

    # Made and freed

    def _make(self, kind: str, value: Any) -> tuple[Any, ...]:
        with self._lock:
            self.made += 1
            if self.made == self.fail_at:
                return (2, 0)
            number = ctypes.addressof(value) if kind in ("memory", "pinned") else self.made + 100
            self.alive[number] = (kind, value)
            return (0, number)

    def _free(self, number: Any) -> tuple[int]:
        with self._lock:
            kind, _ = self.alive.pop(int(number))
            if kind == "stream":
                assert not self.streams.pop(int(number)), "a stream was destroyed with work in it"
        return (0,)

    cudaStreamDestroy = cudaEventDestroy = cudaFree = cudaFreeHost = cudaGraphDestroy = cudaGraphExecDestroy = _free

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        error, number = self._make("stream", None)
        if not error:
            self.streams[number] = deque()
        return error, number

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._make("event", Event())

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.free_bytes:
            return (CudaError("cudaErrorMemoryAllocation"), 0)
        return self._make("memory", (ctypes.c_uint8 * size)(*([0xAB] * min(size, 4096))))

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._make("pinned", (ctypes.c_uint8 * size)())

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._make("executable", self.alive[graph][1])

    # Queued

    def _queue(self, stream: int, work: Callable[[], object]) -> tuple[int]:
        with self._lock:
            self.capturing.get(int(stream), self.streams[int(stream)]).append(work)
        return (0,)

    def do(self, stream: int, work: Callable[[], object], cost: float = 0.0) -> None:
        def step() -> None:
            self.now += cost
            work()

        self._queue(stream, step)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.capturing[int(stream)] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured = self.capturing.pop(int(stream))
        if self.broken_captures:
            self.broken_captures -= 1
            return (CudaError("cudaErrorStreamCaptureInvalidated"), 0)
        return self._make("graph", captured)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        self.calls[f"copy {kind}"] += 1
        copy = (to, source, size, object())
        with self._lock:
            self.copying.add(copy)

        def work() -> None:
            self.copying.discard(copy)
            ctypes.memmove(to, source, size)

        return self._queue(stream, work)

    def _unused(self, start: int, size: int) -> None:
        with self._lock:
            copying = list(self.copying)
        for to, source, length, _ in copying:
            for address in (to, source):
                assert address + length <= start or start + size <= address, "memory in use was given back"

    def cudaMemsetAsync(self, to: int, value: int, size: int, stream: int) -> tuple[int]:
        return self._queue(stream, lambda: ctypes.memset(to, value, size))

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:
        self.calls["launch"] += 1
        captured = self.alive[executable][1]

        def work() -> None:
            assert executable in self.alive, "a graph was destroyed before it ran"
            for step in captured:
                step()

        return self._queue(stream, work)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        with self._lock:
            state = self.alive[event][1]
            state.recorded += 1
            version = state.recorded

            def work() -> None:
                state.reached, state.time = version, self.now

            return self._queue(stream, work)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        with self._lock:
            state = self.alive[event][1]
            self.streams[int(stream)].append((state, state.recorded))
        return (0,)

    # Waited for

    def _step(self) -> bool:
        ready = [
            queue
            for queue in list(self.streams.values())
            if queue and not (isinstance(queue[0], tuple) and queue[0][0].reached < queue[0][1])
        ]
        if not ready:
            return False
        head = self._random.choice(ready).popleft()
        if not isinstance(head, tuple):
            head()
        return True

    def _until(self, done: Callable[[], bool]) -> tuple[int]:
        with self._lock:
            while not done():
                assert self._step(), "the streams wait for each other"
            for _ in range(self._random.randrange(4)):
                self._step()
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        state = self.alive[event][1]
        version = state.recorded
        return self._until(lambda: state.reached >= version)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert int(stream) not in self.capturing, "a wait in a capture"
        return self._until(lambda: not self.streams[int(stream)])

    def cudaEventElapsedTime(self, begin: int, end: int) -> tuple[int, float]:
        return (0, (self.alive[end][1].time - self.alive[begin][1].time) * 1e3)

    # Memory of others

    def cudaHostRegister(self, address: int, size: int, flags: int) -> tuple[Any]:
        self.calls["register"] += 1
        if not self.registers or (flags & self.cudaHostRegisterReadOnly and not self.reads_only):
            return (CudaError("cudaErrorNotSupported"),)
        assert address % 4096 == 0 and address not in self.registered
        self.registered[address] = (size, flags)
        return (0,)

    def cudaHostUnregister(self, address: int) -> tuple[int]:
        self._unused(address, self.registered.pop(address)[0])
        return (0,)

    def cudaIpcOpenMemHandle(self, handle: Any, flags: int) -> tuple[Any, ...]:
        memory = self.exported.get(handle.reserved)
        if memory is None:
            return (CudaError("cudaErrorInvalidValue"), None)
        self.opened[ctypes.addressof(memory)] += 1
        return (0, ctypes.addressof(memory))

    def cudaIpcCloseMemHandle(self, pointer: int) -> tuple[int]:
        self._unused(pointer, 1 << 12)
        self.opened[pointer] -= 1
        return (0,)

    def cudaPointerGetAttributes(self, pointer: int) -> tuple[Any, ...]:
        spans = [(a, ctypes.sizeof(v)) for a, (kind, v) in self.alive.items() if kind == "memory"]
        spans += [(ctypes.addressof(v), ctypes.sizeof(v)) for v in self.exported.values()]
        inside = any(start <= pointer < start + size for start, size in spans)
        kind = "cudaMemoryTypeDevice" if inside else "cudaMemoryTypeUnregistered"
        return (0, SimpleNamespace(type=SimpleNamespace(name=kind), device=0))

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return (0, self.free_bytes, 1 << 40)

    def cudaStreamQuery(self, stream: int) -> tuple[Any]:
        return (CudaError(self.lost) if self.lost else 0,)

    def cudaPeekAtLastError(self) -> tuple[int]:
        return (0,)

    cudaGetLastError = cudaPeekAtLastError

    def cudaSetDevice(self, index: int) -> tuple[int]:
        return (0,)


class CudaError:
    """A value of the bindings' enumeration of errors."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __int__(self) -> int:
        return 999


class Context:
    """y = 2 x + z."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {"x": (-1, 3), "z": (-1, 3)}
        self.address: dict[str, int] = {}
        self.device_memory = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.address[name] = pointer
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.engine.ranges[self.active_optimization_profile]
        if shape[1] != 3 or not low <= shape[0] <= high:
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, self.shapes["x"])

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shapes["x"]
        assert self.device_memory in self.engine.cuda.alive and self.shapes["z"] == shape
        self.engine.ran.append((self.active_optimization_profile, shape[0]))
        if len(self.engine.ran) == self.engine.fail_run:
            return False
        size, address = shape[0] * shape[1], dict(self.address)

        def work() -> None:
            x, z = ((ctypes.c_int32 * size).from_address(address[name]) for name in "xz")
            y = (ctypes.c_int32 * size).from_address(address["y"])
            y[:] = [2 * a + b for a, b in zip(x, z, strict=True)]

        self.engine.cuda.do(stream, work, self.engine.cost(shape[0]))
        return True


class Engine:
    device_memory_size = 1000

    def __init__(self, cuda: Cuda, ranges: list[tuple[int, int]]) -> None:
        self.cuda = cuda
        self.ranges = ranges
        self.ran: list[tuple[int, int]] = []
        self.fail_run = 0
        self.contexts = 0
        self.cost: Callable[[int], float] = lambda rows: 1e-3 * rows

    def create_execution_context_without_device_memory(self) -> Context:
        self.contexts += 1
        return Context(self)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, int], ...]:
        low, high = self.ranges[profile]
        return ((low, 3), (high, 3), (high, 3))

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="INT32")


# TensorRT 8 stores INT64 as INT32.
SIGNATURE = Signature(
    (TensorSpec("x", "INT64", (-1, 3)), TensorSpec("z", "INT32", (-1, 3))), (TensorSpec("y", "INT64", (-1, 3)),), True
)
NARROW = Signature(
    (TensorSpec("x", "INT32", (-1, 3)), TensorSpec("z", "INT32", (-1, 3))), (TensorSpec("y", "INT32", (-1, 3)),), True
)


def make(
    monkeypatch: pytest.MonkeyPatch,
    fail_at: int = -1,
    *,
    seed: int = 0,
    signature: Signature = SIGNATURE,
    shares: bool = True,
    **options: str,
) -> tuple[Cuda, Engine, TensorRtEngine]:
    """An engine for batches of 1 to 8, with a second profile for 1 and 2."""
    bindings = Cuda(fail_at, seed)
    facts = cuda.DeviceFacts(0, "none", "9.0", "", 0)
    monkeypatch.setattr(cuda, "runtime", lambda: bindings)
    monkeypatch.setattr(cuda, "open_device", lambda name: facts)
    monkeypatch.setattr(cuda, "allocation_bytes", lambda pointer: ctypes.sizeof(next(iter(bindings.exported.values()))))
    monkeypatch.setattr(host_memory, "PINNED", host_memory.Ranges())
    monkeypatch.setattr("enginehouse_worker.backends.tensorrt.transfers.PINNED", host_memory.PINNED)
    engine = Engine(bindings, [(1, 8), (1, 2)])
    library: Any = SimpleNamespace(
        messages=Messages(),
        trt=SimpleNamespace(__version__="8.6.0" if shares else "8.5.3"),
        rtx=False,
        flag=lambda kind, name: 1 if shares else None,
        name="TensorRT",
    )
    profiles = (BatchProfile(1, 8, 8), BatchProfile(1, 1, 2))
    loaded = TensorRtEngine(library, None, engine, signature, profiles, load_options(options), facts)
    return bindings, engine, loaded
