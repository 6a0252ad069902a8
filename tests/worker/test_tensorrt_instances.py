"""What an instance does with CUDA and TensorRT, over stand-ins that keep count: memory is real, the device is not.

The real ones need a GPU; this shows what they cannot: that nothing is left behind whichever call fails.
"""

# ruff: noqa: N815

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.instance import TensorRtInstance
from enginehouse_worker.backends.tensorrt.library import Messages
from enginehouse_worker.backends.tensorrt.options import load_options
from enginehouse_worker.backends.tensorrt.runtime import TensorRtEngine
from enginehouse_worker.errors import WorkerError


class Cuda:
    """Streams run at once. `fail_at`: the number of the call that makes something and fails."""

    cudaStreamNonBlocking = cudaEventBlockingSync = cudaEventDisableTiming = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at = fail_at
        self.made = 0
        self.alive: dict[int, Any] = {}
        self.calls: Counter[str] = Counter()
        self.capturing: list[Callable[[], object]] | None = None

    def _make(self, kind: str, value: Any) -> tuple[Any, ...]:
        self.made += 1
        if self.made == self.fail_at:
            return (2, 0)
        number = ctypes.addressof(value) if kind == "memory" else self.made
        self.alive[number] = (kind, value)
        return (0, number)

    def _free(self, number: Any) -> tuple[int]:
        del self.alive[int(number)]
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._make("stream", None)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._make("event", None)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._make("memory", (ctypes.c_uint8 * size)())

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._make("executable", self.alive[graph][1])

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        work, self.capturing = self.capturing, None
        return self._make("graph", work)

    def do(self, work: Callable[[], object]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        self.calls[f"copy {kind}"] += 1
        self.do(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:
        self.calls["launch"] += 1
        for work in self.alive[executable][1]:
            work()
        return (0,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        return (0,)

    cudaMallocHost = cudaMalloc
    cudaStreamDestroy = cudaEventDestroy = cudaFree = cudaFreeHost = cudaGraphDestroy = cudaGraphExecDestroy = _free

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (0,)

    cudaStreamSynchronize = cudaEventSynchronize

    def cudaPeekAtLastError(self) -> tuple[int]:
        return (0,)


class Context:
    """y = 2 x + z."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {"x": (-1, 3), "z": (-1, 3)}
        self.address: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.address[name] = pointer
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.engine.ranges[self.profile]
        self.shapes[name] = shape
        return shape[1] == 3 and low <= shape[0] <= high

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, self.shapes["x"])

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shapes["x"]
        self.engine.ran.append((self.profile, shape[0]))
        if len(self.engine.ran) == self.engine.fail_run:
            return False
        size = shape[0] * shape[1]

        def work() -> None:
            x, z = ((ctypes.c_int32 * size).from_address(self.address[name]) for name in "xz")
            y = (ctypes.c_int32 * size).from_address(self.address["y"])
            y[:] = [2 * a + b for a, b in zip(x, z, strict=True)]

        self.engine.cuda.do(work)
        return True


class Engine:
    def __init__(self, cuda: Cuda, ranges: list[tuple[int, int]]) -> None:
        self.cuda = cuda
        self.ranges = ranges
        self.ran: list[tuple[int, int]] = []
        self.fail_run = 0
        self.contexts = 0

    def create_execution_context(self) -> Context:
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


def make(monkeypatch: pytest.MonkeyPatch, fail_at: int = -1, **options: str) -> tuple[Cuda, Engine, TensorRtEngine]:
    bindings = Cuda(fail_at)
    monkeypatch.setattr(cuda, "runtime", lambda: bindings)
    monkeypatch.setattr(cuda, "open_device", lambda name: None)
    engine = Engine(bindings, [(1, 8), (1, 2)])
    library: Any = SimpleNamespace(messages=Messages())
    facts = cuda.DeviceFacts(0, "none", "9.0", "", 0)
    profiles = (BatchProfile(1, 8, 8), BatchProfile(1, 1, 2))
    return bindings, engine, TensorRtEngine(library, None, engine, SIGNATURE, profiles, load_options(options), facts)


def batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"x": random.integers(-9, 9, (rows, 3)), "z": random.integers(-9, 9, (rows, 3)).astype(np.int32)}


def check(instance: TensorRtInstance, inputs: dict[str, np.ndarray]) -> None:
    y = instance.run(inputs, [])["y"]
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, 2 * inputs["x"] + inputs["z"])


@pytest.mark.parametrize("graphs", ["0", "2", "16"])
def test_batches_of_every_size_in_any_order(monkeypatch: pytest.MonkeyPatch, graphs: str) -> None:
    bindings, engine, loaded = make(monkeypatch, cuda_graphs=graphs)
    instance = loaded.new_instance()
    for seed, rows in enumerate([1, 8, 2, 5, 1, 8, 1, 3, 2, 8]):
        check(instance, batch(rows, seed))
    # Each size went to the profile made for it, in a context of its own.
    assert {(profile, rows) for profile, rows in engine.ran} == {(1, 1), (0, 2), (0, 3), (0, 5), (0, 8)}
    assert engine.contexts == 2
    kept = Counter(kind for kind, _ in bindings.alive.values())
    assert kept["executable"] == kept["graph"] == min(int(graphs), 5)
    instance.close()
    instance.close()
    assert not bindings.alive


def test_a_known_size_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, engine, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    check(instance, batch(4))
    before = (bindings.made, len(engine.ran), bindings.calls["copy in"])
    for seed in range(5):
        check(instance, batch(4, seed))
    assert (bindings.made, len(engine.ran), bindings.calls["copy in"]) == before
    assert bindings.calls["launch"] == 6


def test_inputs_need_not_be_contiguous_and_types_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    whole = np.arange(48).reshape(8, 6)
    check(instance, {"x": whole[::2, ::2], "z": np.asfortranarray(whole[:4, 3:]).astype(np.int32, order="F")})
    with pytest.raises(WorkerError, match="'x' is float32; expected INT64"):
        instance.run({**batch(2), "x": np.zeros((2, 3), np.float32)}, [])


@pytest.mark.parametrize(("rows", "columns"), [(9, 3), (0, 3), (4, 5)])
def test_shapes_that_the_engine_was_not_built_for(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    _, _, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    with pytest.raises(WorkerError) as caught:
        instance.run({"x": np.zeros((rows, columns), np.int64), "z": np.zeros((rows, columns), np.int32)}, [])
    assert caught.value.code == "INVALID_ARGUMENT"
    check(instance, batch(3))


def test_whatever_fails_while_an_instance_is_made_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch)
    loaded.new_instance()
    needed = bindings.made
    assert needed == 8  # a stream, an event, and two pieces of memory for each tensor
    for number in range(1, needed + 1):
        bindings, _, loaded = make(monkeypatch, fail_at=number)
        with pytest.raises(WorkerError):
            loaded.new_instance()
        assert not bindings.alive, f"call {number} failed"


@pytest.mark.parametrize("step", [1, 2])
def test_a_batch_that_fails_in_or_before_its_capture_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    bindings, engine, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    before = set(bindings.alive)
    engine.fail_run = step
    loaded.library.messages.add_error("the tactic broke")
    with pytest.raises(WorkerError, match="the tactic broke"):
        instance.run(batch(2), [])
    assert set(bindings.alive) == before
    check(instance, batch(2))
    instance.close()
    assert not bindings.alive


def test_a_graph_that_cannot_be_instantiated_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    before = set(bindings.alive)
    bindings.fail_at = bindings.made + 2
    with pytest.raises(WorkerError, match="instantiating"):
        instance.run(batch(2), [])
    assert set(bindings.alive) == before


def test_an_engine_of_other_types_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, loaded = make(monkeypatch)
    monkeypatch.setattr(engine, "get_tensor_dtype", lambda name: SimpleNamespace(name="FLOAT"), raising=False)
    with pytest.raises(WorkerError, match="'x' is INT64; the engine has FLOAT"):
        loaded.new_instance()
