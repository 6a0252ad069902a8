"""Arrays in device memory as inputs and outputs, and what is refused of them. The device is a stand-in."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import LEGACY, NARROW, SIGNATURE, Cuda, make
from enginehouse_worker.backends.tensorrt.device_arrays import read_interface
from enginehouse_worker.errors import WorkerError


class Array:
    """Device memory with nothing but the interface; the content is seen from the host, as the device is a stand-in."""

    def __init__(self, bindings: Cuda, values: np.ndarray, **change: Any) -> None:
        _, self.pointer = bindings.cudaMalloc(values.nbytes)
        self.values = np.frombuffer((ctypes.c_uint8 * values.nbytes).from_address(self.pointer), values.dtype)
        self.values = self.values.reshape(values.shape)
        self.values[:] = values
        self.interface = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            **change,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


def values(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, z = np.random.default_rng(seed).integers(-99, 99, (2, rows, 3)).astype(np.int32)
    return x, z


def test_inputs_and_outputs_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW)
    instance = loaded.new_instance()
    for seed, rows in enumerate([4, 1, 8, 3, 4]):
        x, z = values(rows, seed)
        y = Array(bindings, np.zeros((rows, 3), np.int32))
        found = instance.run({"x": Array(bindings, x), "z": z}, (), into={"y": y})
        assert found["y"] is y
        np.testing.assert_array_equal(y.values, 2 * x + z)
        host = np.zeros((rows, 3), np.int32)
        instance.run({"x": x, "z": Array(bindings, z)}, ["y"], into={"y": host})
        np.testing.assert_array_equal(host, 2 * x + z)
    assert bindings.calls["copy device"] == 5 * 3


@pytest.mark.parametrize("interface", [{"stream": 1}, {"stream": "own"}, {"version": 2}])
def test_what_its_owner_queued_comes_first(monkeypatch: pytest.MonkeyPatch, interface: dict[str, Any]) -> None:
    x, z = values(4)
    for seed in range(20):
        bindings, _, loaded = make(monkeypatch, seed=seed, signature=NARROW)
        instance = loaded.new_instance()
        stream = LEGACY
        if interface.get("stream") == "own":
            stream = bindings.cudaStreamCreateWithFlags(1)[1]
        shown = {**interface, "stream": stream} if "stream" in interface else interface
        array = Array(bindings, np.zeros_like(x), **shown)
        y = Array(bindings, np.zeros_like(x), **shown)
        # Written on the owner's stream before; the old content of y is copied away there too.
        bindings.do(stream, lambda array=array: array.values.__setitem__(slice(None), x))
        kept = np.ones_like(x)
        bindings.do(stream, lambda y=y, kept=kept: kept.__setitem__(slice(None), y.values))
        instance.run({"x": array, "z": z}, (), into={"y": y})
        np.testing.assert_array_equal(y.values, 2 * x + z)
        assert not kept.any()


HOST = np.zeros((4, 3), np.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"typestr": "<f4"}, "float32; expected INT32"),
        ({"shape": (4, 4)}, "shape"),
        ({"shape": (9, 3)}, "9"),
        ({"strides": (4, 16)}, "strides"),
        ({"strides": (24, 4)}, "strides"),
        ({"data": (HOST.ctypes.data, False)}, "device memory"),
        ({"version": 1}, "version 2 or 3"),
        ({"mask": 3}, "mask"),
        ({"stream": 0}, "stream 0"),
        ({"typestr": "?!"}, "bad __cuda_array_interface__"),
        ({"data": None}, "bad __cuda_array_interface__"),
    ],
)
def test_inputs_that_are_refused(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW)
    instance = loaded.new_instance()
    x, z = values(4)
    with pytest.raises(WorkerError, match=words) as caught:
        instance.run({"x": Array(bindings, x, **change), "z": z}, ())
    assert caught.value.code == "INVALID_ARGUMENT"
    np.testing.assert_array_equal(instance.run({"x": x, "z": z}, ())["y"], 2 * x + z)


def test_outputs_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW)
    instance = loaded.new_instance()
    x, z = values(4)
    readonly = Array(bindings, x)
    readonly.interface["data"] = (readonly.pointer, True)
    short, other = Array(bindings, x[:2]), Array(bindings, x.astype(np.float32))
    for place, words in [(readonly, "read-only"), (short, "shape"), (other, "float32"), (x[:2], "goes to an array")]:
        with pytest.raises(WorkerError, match=words) as caught:
            instance.run({"x": x, "z": z}, (), into={"y": place})
        assert caught.value.code == "INVALID_ARGUMENT"


def test_a_type_that_the_engine_stores_in_another_width(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch, signature=SIGNATURE)
    instance = loaded.new_instance()
    x, z = values(4)
    with pytest.raises(WorkerError, match="stores as int32") as caught:
        instance.run({"x": Array(bindings, x.astype(np.int64)), "z": z}, ())
    assert caught.value.code == "FAILED_PRECONDITION"
    np.testing.assert_array_equal(instance.run({"x": Array(bindings, x), "z": z}, ())["y"], 2 * x + z)


def test_strides_of_contiguous_memory_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, _ = make(monkeypatch)
    x = np.zeros((2, 1, 3), np.int32)
    # A dimension of one may have any stride.
    assert read_interface("x", Array(bindings, x, strides=(12, 99, 4))).shape == (2, 1, 3)
    assert read_interface("x", Array(bindings, x[:0], strides=(1, 1, 1), data=(0, False))).nbytes == 0
