"""The floor: grpcio's server, tuned as ours is, that parses, runs the model and answers. No batching, no checks.

`threads` is grpcio's thread-pool server, `asyncio` is grpc.aio, which our front is built on.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
from compute import MODELS, announce, arguments, session
from enginehouse_inference.process_tuning import GRPC_OPTIONS, tune_malloc
from tritonclient.grpc import service_pb2, service_pb2_grpc

OPTIONS = (*GRPC_OPTIONS, ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
NUMPY = {"FP32": np.float32, "UINT8": np.uint8}
THREADS = 8


class Bare(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The least that a server must do."""

    def __init__(self, sessions: dict[str, Any]) -> None:
        self._sessions = sessions
        self._regions: dict[str, mmap.mmap] = {}

    def infer(self, request: Any, context: Any) -> Any:
        tensor = request.inputs[0]
        if "shared_memory_region" in tensor.parameters:
            data: Any = self._regions[tensor.parameters["shared_memory_region"].string_param]
        else:
            data = request.raw_input_contents[0]
        x = np.frombuffer(data, NUMPY[tensor.datatype]).reshape(tensor.shape)
        (y,) = self._sessions[request.model_name].run(None, {"x": x})
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.outputs.add(name="y", datatype="FP32" if y.dtype == np.float32 else "INT32", shape=y.shape)
        response.raw_output_contents.append(y.tobytes())
        return response

    def register(self, request: Any, context: Any) -> Any:
        descriptor = os.open(f"/dev/shm/{request.key.lstrip('/')}", os.O_RDONLY)
        self._regions[request.name] = mmap.mmap(descriptor, request.byte_size, prot=mmap.PROT_READ)
        os.close(descriptor)
        return service_pb2.SystemSharedMemoryRegisterResponse()


def servicer(bare: Bare, wrap: Callable[[Any], Any]) -> Any:
    made = service_pb2_grpc.GRPCInferenceServiceServicer()
    made.ModelInfer, made.SystemSharedMemoryRegister = wrap(bare.infer), wrap(bare.register)
    return made


def serve_threads(bare: Bare, ready: Callable[[int], None]) -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer(bare, lambda method: method), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready(port)
    server.wait_for_termination()


async def serve_asyncio(bare: Bare, ready: Callable[[int], None]) -> None:
    def wrap(method: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            return method(request, context)

        return call

    server = grpc.aio.server(options=OPTIONS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer(bare, wrap), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await server.wait_for_termination()


def main() -> None:
    tune_malloc()
    models, announced = arguments()
    bare = Bare({name: session(models, name) for name in MODELS})

    def ready(port: int) -> None:
        announce(announced, port, grpcio=grpc.__version__)

    if sys.argv[3] == "asyncio":
        asyncio.run(serve_asyncio(bare, ready))
    else:
        serve_threads(bare, ready)


if __name__ == "__main__":
    main()
