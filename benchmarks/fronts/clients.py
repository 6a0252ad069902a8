"""Client processes: each holds connections of its own, sends requests as bytes, and checks answers.

A process takes jobs on its standard input, one JSON object a line. To each it says `{}` when it is connected, is told
when to begin, and answers with what it measured; or with an error at either place.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2

_SERVICE = "/inference.GRPCInferenceService/"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel
    ("grpc.http2.max_frame_size", (16 << 20) - 1),
    ("grpc.http2.write_buffer_size", 16 << 20),
)
IMAGES = 64


def images() -> np.ndarray[Any, Any]:
    """Images that differ from each other, the same in every process."""
    random = np.random.default_rng(7)
    noise = random.integers(0, 96, (IMAGES, 224, 224, 3), np.uint8)
    return noise + random.integers(0, 160, (IMAGES, 1, 1, 3), np.uint8)


class Sender:
    """One connection, whose requests are all alike.

    Args:
        job: `port`, `model`, `input`, `dtype`, `output`, `rows`, `shared`.
    """

    def __init__(self, job: dict[str, Any], number: int, pixels: np.ndarray[Any, Any]) -> None:
        self.first = number * 5 % IMAGES
        order = (np.arange(job["rows"]) + self.first) % IMAGES
        self._order = order
        sent = np.ascontiguousarray(pixels[order])
        request = service_pb2.ModelInferRequest(model_name=job["model"])
        tensor = request.inputs.add(name=job["input"], datatype="UINT8", shape=sent.shape)
        request.outputs.add(name=job["output"])
        self._path: Path | None = None
        if job["shared"]:
            self._path = Path("/dev/shm") / f"fronts-{os.getpid()}-{number}"
            with self._path.open("w+b") as file:
                file.truncate(sent.nbytes)
                with mmap.mmap(file.fileno(), sent.nbytes) as memory:
                    memory[:] = sent.tobytes()
            tensor.parameters["shared_memory_region"].string_param = self._path.name
            tensor.parameters["shared_memory_byte_size"].int64_param = sent.nbytes
            self._size = sent.nbytes
        else:
            request.raw_input_contents.append(sent.tobytes())
        self._request = request.SerializeToString()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{job['port']}", options=OPTIONS)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")

    async def open(self) -> None:
        if self._path is not None:
            register = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryRegister")
            name = self._path.name
            message = service_pb2.SystemSharedMemoryRegisterRequest(
                name=name, key=f"/{name}", offset=0, byte_size=self._size
            )
            await register(message.SerializeToString())

    async def ask(self) -> bytes:
        answer: bytes = await self._infer(self._request)
        return answer

    def check(self, answer: bytes, right: np.ndarray[Any, Any]) -> None:
        """Each row must be nearer to its own image's answer than to any other's."""
        message = service_pb2.ModelInferResponse.FromString(answer)
        rows = np.frombuffer(message.raw_output_contents[0], np.float32).reshape(len(self._order), -1)
        nearest = np.linalg.norm(rows[:, None] - right[None], axis=2).argmin(axis=1)
        if not np.array_equal(nearest, self._order):
            raise AssertionError(f"rows of other images: {nearest.tolist()} for {self._order.tolist()}")

    async def close(self) -> None:
        if self._path is not None:
            unregister = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryUnregister")
            await unregister(service_pb2.SystemSharedMemoryUnregisterRequest(name=self._path.name).SerializeToString())
            self._path.unlink()
        await self._channel.close()


async def answers(job: dict[str, Any], pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The engine's answer to each image, alone."""
    sender = [Sender({**job, "rows": 1, "shared": False}, 0, pixels[n:]) for n in range(IMAGES)]
    rows = []
    for one in sender:
        message = service_pb2.ModelInferResponse.FromString(await one.ask())
        rows.append(np.frombuffer(message.raw_output_contents[0], np.float32))
        await one.close()
    return np.stack(rows)


async def window(job: dict[str, Any], pixels: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Connect and say so; told when to begin (CLOCK_MONOTONIC), send for `warm` and `seconds`; count the latter."""
    senders = [Sender(job, job["process"] * job["connections"] + n, pixels) for n in range(job["connections"])]
    for sender in senders:
        await sender.open()
        sender.check(await sender.ask(), right)
    print("{}", flush=True)
    begin = json.loads(await asyncio.to_thread(sys.stdin.readline))["begin"]
    await asyncio.sleep(max(begin - time.monotonic(), 0))
    start = begin + job["warm"]
    end = start + job["seconds"]
    latencies: list[float] = []
    cpu = time.process_time()

    async def work(sender: Sender) -> None:
        begun = time.monotonic()
        answer = b""
        while begun < end:
            answer = await sender.ask()
            done = time.monotonic()
            if start <= done < end:
                latencies.append((done - begun) * 1e3)
            begun = done
        sender.check(answer, right)

    await asyncio.gather(*(work(sender) for sender in senders for _ in range(job["in_flight"])))
    cpu = time.process_time() - cpu
    for sender in senders:
        await sender.close()
    return {"latencies_ms": latencies, "cpu_seconds": cpu}


def main() -> None:
    pixels = images()
    right = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if right is None:
                right = asyncio.run(answers(job, pixels))
            said = asyncio.run(window(job, pixels, right))
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
