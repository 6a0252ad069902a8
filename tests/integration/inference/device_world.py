"""A server on a "GPU" whose memory is files (`file_worker.py`), and a client that shares such memory with it."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from inference_world import Server, load

from enginehouse.client.cuda import Allocation
from enginehouse.client.device_arrays import DeviceArray

_WORKER = Path(__file__).with_name("file_worker.py")


def handle(name: str) -> bytes:
    """What a CUDA IPC handle is here: 64 bytes that name a file."""
    return name.encode().ljust(64, b"\0")


class DeviceWorld:
    """A server with the models `one` and `two` on the device.

    Args:
        start: starts a server by its settings.
    """

    def __init__(self, folder: Path, start: Callable[..., Server], monkeypatch: Any, **settings: str) -> None:
        self.memory = folder / "memory"
        self.memory.mkdir()
        python = folder / "python"
        python.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(_WORKER)!r}, run_name='__main__')\n")
        python.chmod(0o755)
        self.engines = folder / "engines"
        (self.engines / "device").mkdir(parents=True)
        (self.engines / "device" / "engine.json").write_text(
            json.dumps(
                {
                    "backend": "tensorrt",
                    "batched": True,
                    "max_batch_size": 8,
                    "device": {"kind": "gpu", "product": "Files"},
                }
            )
        )
        monkeypatch.setenv("DEVICE_MEMORY", str(self.memory))
        self.server = start(device="cuda:0", workers=json.dumps({"tensorrt": str(python)}), **settings)
        self.client = self.server.client()
        for name in ("one", "two"):
            load(self.client, self.engines, "device", name, options={})

    def allocate(self, name: str, size: int = 1024) -> Path:
        """Device memory."""
        path = self.memory / name
        path.write_bytes(bytes(size))
        return path

    def write(self, name: str, values: Any, offset: int = 0) -> None:
        with (self.memory / name).open("r+b") as file:
            file.seek(offset)
            file.write(values.tobytes())

    def read(self, name: str, shape: tuple[int, ...], offset: int = 0) -> Any:
        data = (self.memory / name).read_bytes()
        return np.frombuffer(data, np.float32, int(np.prod(shape)), offset).reshape(shape)

    def register(self, name: str, size: int = 1024) -> None:
        """Device memory of that name, registered under it."""
        if not (self.memory / name).exists():
            self.allocate(name, size)
        self.client.register_cuda_shared_memory(name, base64.b64encode(handle(name)), 0, size)

    def done(self) -> list[str]:
        """What the worker did, in order."""
        path = self.memory / "done"
        return path.read_text().splitlines() if path.exists() else []

    def go(self) -> None:
        """Let requests that wait go on."""
        (self.memory / "go").touch()


class FileArray:
    """Device memory as a library shows it: `rows` of 4 floats at an address of `FileDriver`'s."""

    def __init__(self, pointer: int, rows: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (rows, 4),
            "typestr": "<f4",
            "data": (pointer, False),
            "version": 3,
            "stream": 7,
        }


class FileDriver:
    """The SDK's `DeviceDriver` for files: addresses that stand for them."""

    def __init__(self, world: DeviceWorld) -> None:
        self._world = world
        self._names: list[str] = []
        self.waited: list[int] = []

    def allocate(self, name: str) -> int:
        """1024 bytes; returns their address."""
        self._world.allocate(name)
        self._names.append(name)
        return len(self._names) << 20

    def allocation(self, pointer: int, what: str) -> Allocation:
        number = pointer >> 20
        return Allocation(number << 20, 1024, number, 0)

    def handle(self, allocation: Allocation) -> bytes:
        return handle(self._names[allocation.identity - 1])

    def synchronize(self, array: DeviceArray) -> None:
        assert array.stream is not None
        self.waited.append(array.stream)


def in_region(name: str, rows: int, offset: int = 0) -> Any:
    """The input `x`, in a region."""
    x = triton.InferInput("x", [rows, 4], "FP32")
    x.set_shared_memory(name, rows * 16, offset=offset)
    return x


def into_region(output: str, name: str, size: int, offset: int = 0) -> Any:
    """An output, into a region."""
    wanted = triton.InferRequestedOutput(output)
    wanted.set_shared_memory(name, size, offset=offset)
    return wanted
