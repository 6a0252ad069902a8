"""Device arrays: what is understood of them, and what is asked of the CUDA driver, with a stand-in for its bindings."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from enginehouse import Client, TensorSpec
from enginehouse.client.cuda import Allocation, CudaDriver, open_driver
from enginehouse.client.device_arrays import DeviceArray, device_array, fit_device, is_device_array
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError

SPEC = TensorSpec("x", "FP32", (-1, 3))


def shown(**changes: Any) -> Any:
    """An object that shows a float32 array of [2, 3] at 4096."""
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3, "stream": None, **changes}
    return SimpleNamespace(__cuda_array_interface__={k: v for k, v in interface.items() if v != "absent"})


def test_a_device_array_is_what_its_library_says() -> None:
    assert device_array(shown(), "x") == DeviceArray(4096, (2, 3), "<f4", 24, False, None)
    assert device_array(shown(stream=7, data=(1, True)), "x").stream == 7
    # Without a word on streams, all work is waited for.
    assert device_array(shown(version=2, stream="absent"), "x").stream == 0
    assert device_array(shown(strides=(12, 4)), "x").nbytes == 24
    assert device_array(shown(shape=(1, 3), strides=(999, 4)), "x").nbytes == 12
    assert device_array(shown(shape=()), "x").nbytes == 4
    assert not is_device_array(np.zeros(3)) and is_device_array(shown())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": (4, 8)}, "C order"),
        ({"strides": (24, 4)}, "C order"),
        ({"mask": shown()}, "masked"),
        ({"shape": (0, 3)}, "without elements"),
        ({"data": None}, "not understood"),
        ({"typestr": "nonsense"}, "not understood"),
    ],
)
def test_what_cannot_be_shared_as_it_is_says_so(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"input 'x'.*{words}"):
        device_array(shown(**changes), "input 'x'")


@pytest.mark.parametrize(
    ("dtype", "typestr", "fits"),
    [
        ("FP32", "<f4", True),
        ("FP32", ">f4", False),
        ("FP32", "<f8", False),
        ("FP16", "<f2", True),
        ("UINT8", "|u1", True),
        ("BOOL", "|b1", True),
        ("INT64", "<i8", True),
        ("BF16", "<V2", True),
        ("BF16", "<f2", False),
        ("FP16", "<V2", False),
        ("BYTES", "|S4", False),
        ("FP32", "<c8", False),
    ],
)
def test_nothing_is_cast_on_a_device(dtype: str, typestr: str, fits: bool) -> None:
    array = device_array(shown(typestr=typestr), "x")
    spec = TensorSpec("x", dtype, (-1, 3))
    if fits:
        assert fit_device(array, spec, "x") == (dtype, array)
        return
    with pytest.raises(InvalidArgumentError, match="cast it there"):
        fit_device(array, spec, "x")


def test_shapes_are_checked() -> None:
    for shape in ((2, 4), (3,), (1, 2, 3)):
        with pytest.raises(InvalidArgumentError, match="has shape"):
            fit_device(device_array(shown(shape=shape), "x"), SPEC, "x")


class Error(IntEnum):
    SUCCESS = 0
    INVALID_VALUE = 1
    INVALID_CONTEXT = 201


class Handle:
    def __init__(self, content: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(content, 64)

    def getPtr(self) -> int:
        return ctypes.addressof(self._buffer)


class Bindings:
    """`cuda.bindings.driver`, as far as it is used: one allocation of 1000 bytes at 4096, of the context "theirs"."""

    def __init__(self, **attributes: Any) -> None:
        self._attributes = {
            "MEMORY_TYPE": 2,
            "IS_LEGACY_CUDA_IPC_CAPABLE": True,
            "BUFFER_ID": 77,
            "DEVICE_ORDINAL": 1,
            "CONTEXT": "theirs",
            **attributes,
        }
        self.CUpointer_attribute = SimpleNamespace(**{f"CU_POINTER_ATTRIBUTE_{n}": n for n in self._attributes})
        self.contexts: list[str] = []
        self.waited: list[Any] = []

    def cuInit(self, flags: int) -> Any:
        return (Error.SUCCESS,)

    def cuPointerGetAttribute(self, name: str, pointer: int) -> Any:
        inside = 4096 <= pointer < 5096
        return (Error.SUCCESS, self._attributes[name]) if inside else (Error.INVALID_VALUE, None)

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.contexts.append(context)
        return (Error.SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        return (Error.SUCCESS, self.contexts.pop())

    def cuMemGetAddressRange(self, pointer: int) -> Any:
        return self._in_context(4096, 1000)

    def cuIpcGetMemHandle(self, pointer: int) -> Any:
        assert pointer == 4096
        return self._in_context(Handle(b"a handle\0 with a zero"))

    def cuStreamSynchronize(self, stream: int) -> Any:
        self.waited.append(stream)
        return self._in_context()

    def cuCtxSynchronize(self) -> Any:
        self.waited.append("all")
        return self._in_context()

    def _in_context(self, *values: Any) -> Any:
        return (Error.SUCCESS if self.contexts == ["theirs"] else Error.INVALID_CONTEXT, *values)


def test_the_driver_is_asked_in_the_memorys_own_context() -> None:
    bindings = Bindings()
    driver = CudaDriver(bindings)
    allocation = driver.allocation(4200, "x")
    assert allocation == Allocation(base=4096, size=1000, identity=77, device=1)
    handle = driver.handle(allocation)
    assert len(handle) == 64 and handle.startswith(b"a handle\0 with a zero\0")
    for stream in (None, 0, 1, 2, 99):
        driver.synchronize(device_array(shown(stream=stream), "x"))
    assert bindings.waited == ["all", 1, "all", 99]
    assert not bindings.contexts


def test_memory_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"input 'x': 0x1 is no device memory.*INVALID_VALUE"):
        CudaDriver(Bindings()).allocation(1, "input 'x'")
    for attributes in ({"MEMORY_TYPE": 1}, {"IS_LEGACY_CUDA_IPC_CAPABLE": False}):
        with pytest.raises(InvalidArgumentError, match=r"cudaMallocAsync.*NumPy"):
            CudaDriver(Bindings(**attributes)).allocation(4096, "x")


def test_without_cuda_bindings_it_says_what_to_install(sync_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(FailedPreconditionError, match=r"enginehouse\[cuda\].*NumPy"):
        open_driver()
    with pytest.raises(FailedPreconditionError, match=r"enginehouse\[cuda\].*NumPy"):
        sync_client.infer("double", shown())


def test_importing_the_client_asks_for_no_cuda() -> None:
    program = "import sys, enginehouse.client; sys.exit(any(m.split('.')[0] == 'cuda' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
