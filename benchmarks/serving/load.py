"""The load: clients that each send their next request when the last one is answered, every answer checked."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2

from serving.cases import Question

_SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each client
)


class WrongAnswerError(Exception):
    """A server answered something else than what the model computes."""


@dataclass(frozen=True)
class Window:
    """Latencies in ms, of as many requests as were answered in `seconds`."""

    latencies_ms: tuple[float, ...]
    seconds: float


class SharedInput:
    """A client's input in system shared memory."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.size = len(data)
        self._path = Path("/dev/shm") / name
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(descriptor, self.size)
        self._memory = mmap.mmap(descriptor, self.size)
        self._memory[:] = data
        os.close(descriptor)

    def close(self) -> None:
        self._memory.close()
        self._path.unlink()


class Client:
    """One client of one server: what it asks, as bytes."""

    def __init__(self, port: int, question: Question, number: int) -> None:
        self._question = question
        sent = question.sent
        request = service_pb2.ModelInferRequest(model_name=question.model)
        tensor = request.inputs.add(name=question.input, datatype=question.dtype, shape=sent.shape)
        self._shared: SharedInput | None = None
        if question.shared:
            self._shared = SharedInput(f"serving-{os.getpid()}-{port}-{number}", sent.tobytes())
            tensor.parameters["shared_memory_region"].string_param = self._shared.name
            tensor.parameters["shared_memory_byte_size"].int64_param = self._shared.size
        else:
            request.raw_input_contents.append(sent.tobytes())
        self._request = request.SerializeToString()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")

    async def open(self) -> None:
        """Register the shared memory, if any, and connect."""
        if self._shared is not None:
            register = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryRegister")
            message = service_pb2.SystemSharedMemoryRegisterRequest(
                name=self._shared.name, key=f"/{self._shared.name}", offset=0, byte_size=self._shared.size
            )
            await register(message.SerializeToString())
        await self.ask()

    async def ask(self) -> None:
        """Send the request and check the answer.

        Raises:
            WrongAnswerError: it is another.
        """
        answer = service_pb2.ModelInferResponse.FromString(await self._infer(self._request))
        raw = answer.raw_output_contents
        data = raw[0] if raw else _typed(answer.outputs[0])
        if not self._question.answered_by(data, answer.outputs[0].shape):
            raise WrongAnswerError(f"{len(data)} other bytes than expected, shape {list(answer.outputs[0].shape)}")

    async def close(self) -> None:
        await self._channel.close()
        if self._shared is not None:
            self._shared.close()


def _typed(output: Any) -> bytes:
    """The bytes of an output that came in typed contents."""
    if output.datatype == "FP32":
        return np.array(output.contents.fp32_contents, np.float32).tobytes()
    return np.array(output.contents.int_contents, np.int32).tobytes()


async def window(clients: Sequence[Client], seconds: float) -> Window:
    """All clients at once for `seconds`; the last answers are waited for."""
    latencies: list[float] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def work(client: Client) -> None:
        started = time.perf_counter()
        while started < end:
            await client.ask()
            done = time.perf_counter()
            latencies.append((done - started) * 1e3)
            started = done

    await asyncio.gather(*(work(client) for client in clients))
    return Window(tuple(latencies), time.perf_counter() - begin)
