"""A worker whose device memory is files: what a GPU's worker is to its front, without a GPU.

Run in an interpreter's place: `file_worker.py -m enginehouse_worker serve --fd N --device cuda:0`. A memory handle is
the name of a file in the folder DEVICE_MEMORY, padded to 64 bytes. Every model takes `x` (FP32, [-1, 4]) and gives
`y` = 2x and `z` = -x. It does one thing after the other, and writes down what in the file `done`:

- an `x` that begins with LOSE loses the device context: the process ends with status 70;
- one that begins with WAIT waits for the file `go`.
"""

from __future__ import annotations

import array
import base64
import json
import mmap
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LOSE, WAIT = 666.0, -1.0
POISONED = 70
SEGMENT_BYTES = 1 << 20
TENSORS = {name: {"name": name, "dtype": "FP32", "shape": [-1, 4]} for name in "xyz"}

Frame = dict[str, Any]


class RefusedError(Exception):
    """An `error` frame: its code and its message."""


class Channel:
    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._buffer = b""
        self._descriptors: list[int] = []

    def send(self, frame: Frame, descriptor: int | None = None) -> None:
        body = json.dumps(frame).encode()
        data = struct.pack("<I", len(body)) + body
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        self._socket.sendmsg([data], rights)

    def receive(self) -> Frame | None:
        while len(self._buffer) < 4 or len(self._buffer) < 4 + struct.unpack_from("<I", self._buffer)[0]:
            data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(64 * 4))
            if not data:
                return None
            self._buffer += data
            for _, _, content in ancillary:
                received = array.array("i")
                received.frombytes(content)
                self._descriptors += received
        size = 4 + struct.unpack_from("<I", self._buffer)[0]
        frame: Frame = json.loads(self._buffer[4:size])
        self._buffer = self._buffer[size:]
        return frame

    def descriptor(self) -> int:
        return self._descriptors.pop(0)


class Worker:
    def __init__(self, channel: Channel, folder: Path) -> None:
        self._channel = channel
        self._folder = folder
        self._theirs: dict[int, mmap.mmap] = {}
        self._ours: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._regions: dict[int, mmap.mmap] = {}

    def run(self, device: str) -> None:
        self._channel.send(
            {
                "type": "ready",
                "protocol": 1,
                "pid": os.getpid(),
                "backends": {"tensorrt": "test"},
                "device": device,
                "memory": ["host", "cuda"],
            }
        )
        while (frame := self._channel.receive()) is not None and frame["type"] != "shutdown":
            try:
                getattr(self, f"do_{frame['type']}")(frame)
            except RefusedError as error:
                code, message = error.args
                self._channel.send({"type": "error", "id": frame["id"], "code": code, "message": message})

    def do_load(self, frame: Frame) -> None:
        self._channel.send(
            {
                "type": "loaded",
                "id": frame["id"],
                "inputs": [TENSORS["x"]],
                "outputs": [TENSORS["y"], TENSORS["z"]],
                "batched": True,
                "max_batch_size": 8,
                "seconds": 0.0,
                "memory_bytes": 1 << 20,
                "device_memory_bytes": 3 << 20,
            }
        )

    def do_unload(self, frame: Frame) -> None:
        self._channel.send({"type": "unloaded", "id": frame["id"]})

    def do_ping(self, frame: Frame) -> None:
        self._channel.send({"type": "pong", "id": frame["id"]})

    def do_cancel(self, frame: Frame) -> None:
        pass  # what it names has run

    def do_segment(self, frame: Frame) -> None:
        descriptor = self._channel.descriptor()
        self._theirs[frame["segment"]] = mmap.mmap(descriptor, frame["bytes"], prot=mmap.PROT_READ)
        os.close(descriptor)

    def do_drop(self, frame: Frame) -> None:
        del self._theirs[frame["segment"]]

    def do_release(self, frame: Frame) -> None:
        self._free += frame["segments"]

    def do_region(self, frame: Frame) -> None:
        name = base64.b64decode(frame["handle"]).rstrip(b"\0").decode()
        path = self._folder / name
        if not path.exists() or path.stat().st_size < frame["bytes"]:
            raise RefusedError("INVALID_ARGUMENT", f"no device memory {name!r} of {frame['bytes']} bytes")
        with path.open("r+b") as file:
            self._regions[frame["region"]] = mmap.mmap(file.fileno(), frame["bytes"])
        self._note(f"open {name}")
        self._channel.send({"type": "opened", "id": frame["id"]})

    def do_close(self, frame: Frame) -> None:
        self._regions.pop(frame["region"]).close()
        self._note("close")
        self._channel.send({"type": "closed", "id": frame["id"]})

    def do_infer(self, frame: Frame) -> None:
        self._free += frame.get("release", [])
        (x,) = (self._read(tensor) for tensor in frame["inputs"])
        self._note(f"infer {len(x)}")
        if x[0, 0] == LOSE:
            print("the device context is lost, this worker ends: a test said so", file=sys.stderr, flush=True)
            os._exit(POISONED)
        while x[0, 0] == WAIT and not (self._folder / "go").exists():
            time.sleep(0.005)
        places = {place["name"]: place for place in frame.get("places", [])}
        names = frame["outputs"] or ["y", "z"]
        arrays = {name: {"y": 2 * x, "z": -x}[name] for name in names}
        times = dict.fromkeys(("queue_ns", "input_ns", "compute_ns", "output_ns"), 1)
        outputs = self._write(arrays, places)
        self._channel.send({"type": "result", "id": frame["id"], "outputs": outputs, **times})

    def _read(self, tensor: Frame) -> Any:
        memory = self._regions[tensor["region"]] if "region" in tensor else self._theirs[tensor["segment"]]
        count = int(np.prod(tensor["shape"]))
        return np.frombuffer(memory, np.float32, count, tensor["offset"]).reshape(tensor["shape"]).copy()

    def _write(self, arrays: dict[str, Any], places: dict[str, Frame]) -> list[Frame]:
        segment = self._segment() if set(arrays) - set(places) else 0
        offset, described = 0, []
        for name, values in arrays.items():
            tensor = {"name": name, "dtype": "FP32", "shape": list(values.shape), "bytes": values.nbytes}
            if place := places.get(name):
                if place["bytes"] < values.nbytes:
                    raise RefusedError("INVALID_ARGUMENT", f"{name} has {values.nbytes} bytes")
                self._regions[place["region"]][place["offset"] : place["offset"] + values.nbytes] = values.tobytes()
                described.append({**tensor, "region": place["region"], "offset": place["offset"]})
                continue
            self._ours[segment][offset : offset + values.nbytes] = values.tobytes()
            described.append({**tensor, "segment": segment, "offset": offset})
            offset += -(-values.nbytes // 64) * 64
        return described

    def _segment(self) -> int:
        if self._free:
            return self._free.pop()
        number = len(self._ours) + 1
        descriptor = os.memfd_create("segment")
        os.ftruncate(descriptor, SEGMENT_BYTES)
        self._ours[number] = mmap.mmap(descriptor, SEGMENT_BYTES)
        self._channel.send({"type": "segment", "segment": number, "bytes": SEGMENT_BYTES}, descriptor)
        os.close(descriptor)
        return number

    def _note(self, what: str) -> None:
        with (self._folder / "done").open("a") as file:
            file.write(what + "\n")


if __name__ == "__main__":
    arguments = dict(zip(sys.argv, sys.argv[1:], strict=False))
    Worker(Channel(int(arguments["--fd"])), Path(os.environ["DEVICE_MEMORY"])).run(arguments["--device"])
