"""The time of each layer, over stand-ins for CUDA and TensorRT: the real ones need a GPU."""

# ruff: noqa: N815

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from enginehouse_worker.backends.tensorrt import cuda, inspector, profiler
from enginehouse_worker.backends.tensorrt.library import Library, Messages
from enginehouse_worker.backends.tensorrt.profiler import describe_layers, layer_times, random_values, with_times
from enginehouse_worker.errors import WorkerError


class Cuda:
    """Device memory is host memory; counts what is alive."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in")

    def __init__(self) -> None:
        self.alive: dict[int, Any] = {}

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        memory = (ctypes.c_uint8 * size)()
        self.alive[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return self.cudaMalloc(1)

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.alive[pointer]
        return (0,)

    cudaStreamDestroy = cudaFree

    def cudaMemcpy(self, to: int, source: int, size: int, kind: str) -> tuple[int]:
        assert (kind, len(self.alive[to])) == ("in", size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profiler: Any = None
        self.profile = 0
        self.shape = (-1, 4)
        self.memory: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= self.engine.largest[self.profile]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.output or (self.shape[0], 2)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.memory[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.ran.append((self.profile, self.shape))
        assert set(self.memory) == {"x", "y"}
        if self.profiler is not None:
            # As from the second batch on; the third takes longer. One layer runs twice.
            number = len(self.engine.ran)
            for name, taken in (("conv", 1.0 + number), ("copy", 0.25), ("copy", 0.5)):
                self.profiler.report_layer_time(name, taken)
        return len(self.engine.ran) != self.engine.fail_at


class Engine:
    num_io_tensors = 2
    largest = (8, 16)
    layers = ("conv", "conv [profile 1]", "copy")

    def __init__(self, fail_at: int = 0, output: tuple[int, ...] = ()) -> None:
        self.fail_at = fail_at
        self.output = output
        self.ran: list[Any] = []

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "INPUT", "y": "OUTPUT"}[name]

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 4), (self.largest[profile] // 2, 4), (self.largest[profile], 4)]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT", itemsize=4)

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        return Inspector(self.layers)


class Inspector:
    """As TensorRT 8.6's, which knows the types of a dynamic engine's tensors only by a context with shapes."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self.execution_context: Context | None = None

    def get_engine_information(self, form: str) -> str:
        known = self.execution_context is not None and self.execution_context.shape[0] > 0
        form = "Row major Int8 format" if known else "N/A due to dynamic shapes"
        outputs = [{"Name": "y", "Format/Datatype": form}]
        return json.dumps({"Layers": [{"Name": name, "Outputs": outputs} for name in self.layers]})


class IProfiler:
    def __init__(self) -> None: ...


def library(engine: Engine | None = None) -> Library:
    trt = SimpleNamespace(
        IProfiler=IProfiler,
        TensorLocation=SimpleNamespace(DEVICE="DEVICE"),
        TensorIOMode=SimpleNamespace(INPUT="INPUT"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        __version__="8.6.0",
        __name__="tensorrt",
    )
    return Library(trt, None, Messages())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    stand_in = Cuda()
    monkeypatch.setattr(cuda, "runtime", lambda: stand_in)
    monkeypatch.setattr(cuda, "open_device", lambda name: None)
    yield stand_in
    assert not stand_in.alive, "something was left on the device"


def test_the_mean_of_the_runs_without_the_first_ones(device: Cuda) -> None:
    engine = Engine()
    shaped, times = layer_times(library(), engine, batch=3, runs=4)
    # Three batches of warming up: the four that count are the fourth to the seventh.
    assert times == {"conv": 1 + (4 + 5 + 6 + 7) / 4, "copy": 0.75}
    assert engine.ran == [(0, (3, 4))] * 7
    assert shaped is not None and [layer["precision"] for layer in shaped["layers"]] == ["INT8"] * 3


def test_a_batch_is_timed_in_its_profile(device: Cuda) -> None:
    engine = Engine()
    layer_times(library(), engine, batch=12, profile=1, runs=1)
    assert engine.ran[-1] == (1, (12, 4))
    with pytest.raises(WorkerError, match=r"input 'x' of shape \[12, 4\]"):
        layer_times(library(), engine, batch=12, profile=0)


@pytest.mark.parametrize(
    ("engine", "says"), [(Engine(fail_at=2), "cannot run the batch"), (Engine(output=(-1, 2)), "depends on the data")]
)
def test_what_cannot_be_timed_leaves_nothing_behind(device: Cuda, engine: Engine, says: str) -> None:
    with pytest.raises(WorkerError, match=says):
        layer_times(library(), engine, batch=3)


def test_a_layer_of_another_profile_has_no_time_and_no_time_is_lost() -> None:
    layers = [{"name": "conv", "type": "Conv"}, {"name": "conv [profile 1]"}]
    assert with_times(layers, {"conv": 0.1234567891, "hidden": 2.0}) == [
        {"name": "conv", "type": "Conv", "milliseconds": 0.123457},
        {"name": "conv [profile 1]"},
        {"name": "hidden", "milliseconds": 2.0},
    ]


@pytest.fixture
def engine_files(tmp_path: Path) -> Callable[..., Path]:
    def write(**more: Any) -> Path:
        (tmp_path / "model.plan").write_bytes(b"plan")
        spec = {"dtype": "FP32", "shape": [-1, 4]}
        description = {
            "backend": "tensorrt",
            "inputs": [{"name": "x", **spec}],
            "outputs": [{"name": "y", **spec}],
            "batched": True,
            "payload": "model.plan",
            "profiles": [{"min": 1, "opt": 4, "max": 8}, {"min": 1, "opt": 8, "max": 16}],
            **more,
        }
        (tmp_path / "engine.json").write_text(json.dumps(description))
        return tmp_path

    return write


def test_an_engine_says_what_its_layers_take(
    device: Cuda, engine_files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    monkeypatch.setattr(profiler, "open_library", lambda: library(engine))
    found = describe_layers(engine_files())
    assert found is not None
    assert (found["batch"], found["runs"], engine.ran[-1]) == (4, 10, (0, (4, 4)))
    assert [("milliseconds" in layer, layer["name"]) for layer in found["layers"]] == [
        (True, "conv"),
        (False, "conv [profile 1]"),
        (True, "copy"),
    ]
    found = describe_layers(engine_files(), batch=16, runs=1)
    assert found is not None
    assert (found["batch"], found["runs"], engine.ran[-1]) == (16, 1, (1, (16, 4)))


def test_a_failure_to_time_costs_the_times_only(
    device: Cuda,
    engine_files: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profiler, "open_library", lambda: library(Engine(fail_at=1)))
    found = describe_layers(engine_files())
    assert found == {"layers": [{"name": name, "nodes": []} for name in ("conv", "conv [profile 1]", "copy")]}
    assert "not timed: TensorRT cannot run the batch" in capsys.readouterr().err


def test_a_plan_that_does_not_load_has_no_layers(
    device: Cuda,
    engine_files: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profiler, "open_library", lambda: library(None))
    assert describe_layers(engine_files()) is None
    # A stripped plan whose version cannot fill it in, and one whose weights are gone.
    monkeypatch.setattr(profiler, "open_library", lambda: library(Engine()))
    assert describe_layers(engine_files(weights="weights.onnx")) is None
    assert "TensorRT 8.6.0 has no weight stripping" in capsys.readouterr().err


def test_a_stripped_plan_gets_its_weights_before_its_first_context(tmp_path: Path) -> None:
    done: list[Any] = []

    class Parser:
        def __init__(self, refitter: Any, logger: Any) -> None:
            assert refitter.engine == "engine"

        def refit_from_file(self, path: str) -> bool:
            done.append(Path(path).read_bytes())
            return done[-1] == b"right"

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            self.engine = engine

        def refit_cuda_engine(self) -> bool:
            done.append("refitted")
            return True

        def get_missing_weights(self) -> list[str]:
            return ["conv1.weight"]

    given = library()
    given.trt.OnnxParserRefitter, given.trt.Refitter = Parser, Refitter
    inspector.refit(given, "engine", tmp_path, {})
    assert not done
    with pytest.raises(WorkerError, match=r"'weights.onnx', which has them, is not there"):
        inspector.refit(given, "engine", tmp_path, {"weights": "weights.onnx"})
    (tmp_path / "weights.onnx").write_bytes(b"right")
    inspector.refit(given, "engine", tmp_path, {"weights": "weights.onnx"})
    assert done == [b"right", "refitted"]
    (tmp_path / "weights.onnx").write_bytes(b"wrong")
    with pytest.raises(WorkerError, match=r"no weights for conv1\.weight") as caught:
        inspector.refit(given, "engine", tmp_path, {"weights": "weights.onnx"})
    assert caught.value.code == "DATA_LOSS"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("FLOAT", "f4"), ("HALF", "f2"), ("BF16", "u2"), ("UINT8", "u1"), ("INT32", "i4"), ("INT64", "i8"), ("BOOL", "?")],
)
def test_every_type_has_values(name: str, dtype: str) -> None:
    value = random_values(name, (3, 50))
    assert (value.dtype, value.shape) == (np.dtype(dtype), (3, 50))
    assert len(np.unique(value)) > 1


def test_a_type_without_values_is_named() -> None:
    with pytest.raises(WorkerError, match="FP4"):
        random_values("FP4", (1,))
