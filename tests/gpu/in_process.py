"""Device arrays as inputs and outputs of an instance, in the worker's own Python: in_process.py ENGINE DATA.npz.

The arrays are made with cuda-bindings and have nothing but `__cuda_array_interface__`, as any library's have.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from enginehouse_worker.backends import registry
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.errors import WorkerError


class DeviceArray:
    """A contiguous copy of a host array in device memory."""

    def __init__(self, array: Any, **change: Any) -> None:
        self.array = np.ascontiguousarray(array)
        self.memory = cuda.Memory(self.array.nbytes)
        self._change = change
        runtime = cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.checked(runtime.cudaMemcpy(self.memory.pointer, self.array.ctypes.data, self.array.nbytes, kind), "in")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        value = {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.memory.pointer, False),
            "strides": None,
            "version": 3,
            "stream": 1,
        }
        return {**value, **self._change}

    def host(self) -> Any:
        runtime = cuda.runtime()
        found = np.empty_like(self.array)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.checked(runtime.cudaMemcpy(found.ctypes.data, self.memory.pointer, found.nbytes, kind), "out")
        return found


def refused(instance: Any, inputs: Any) -> str:
    try:
        instance.run(inputs, ())
    except WorkerError as error:
        assert error.code == "INVALID_ARGUMENT", error
        return str(error.message)
    raise AssertionError("it was taken")


def close(found: Any, expected: Any) -> None:
    difference = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    assert difference < 0.02, difference


def main(engine: Path, data: Path) -> None:
    loaded = registry.get("tensorrt").load(engine, device="cuda:0", options={})
    instance = loaded.new_instance()
    (name,) = (spec.name for spec in loaded.signature.inputs)
    with np.load(data) as file:
        images, expected = file["images"], file["expected"]
    for size in (1, 5, 16, 32, 3):
        array = DeviceArray(images[:size])
        (found,) = instance.run({name: array}, ()).values()
        assert len(found) == size
        close(found, expected[:size])
        (found,) = instance.run({name: images[:size]}, ()).values()  # host memory in between
        close(found, expected[:size])
    print("inputs: right", flush=True)
    (output,) = (spec.name for spec in loaded.signature.outputs)
    for size in (2, 16, 7):
        room = DeviceArray(np.zeros_like(expected[:size]))
        found = instance.run({name: DeviceArray(images[:size])}, (), into={output: room})
        assert found[output] is room
        close(room.host(), expected[:size])
    print("outputs: right", flush=True)
    array = DeviceArray(images[:4])
    host = images[:4].copy()
    wrong = {
        "dtype": DeviceArray(images[:4].astype(np.float64)),
        "shape": DeviceArray(images[:4, :2]),
        "strides": DeviceArray(images[:4], strides=(4, 8, 16, 32)),
        "pointer": DeviceArray(images[:4], data=(host.ctypes.data, False)),
    }
    for what, item in wrong.items():
        print(f"{what}: {refused(instance, {name: item})}", flush=True)
    (found,) = instance.run({name: array}, ()).values()
    close(found, expected[:4])
    instance.close()
    loaded.close()
    print("all right", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
