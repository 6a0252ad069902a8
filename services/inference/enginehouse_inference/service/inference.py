"""The front's part of the protocol: what belongs to a connection. What requests mean is the engine host's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from enginehouse_inference.service.host import EngineHost

# Metadata by which a caller says that an error shall end its stream.
STRICT_KEY = "triton_grpc_error"


class InferenceMethods:
    """ModelInfer and ModelStreamInfer, on serialized messages.

    Args:
        stream_window: requests of one stream that are worked on at once.
    """

    def __init__(self, host: EngineHost, stream_window: int) -> None:
        self._host = host
        self._window = stream_window
        self._stopping = asyncio.Event()

    def stop_streams(self) -> None:
        """Take no more requests from open streams; each ends when its last answer is out."""
        self._stopping.set()

    async def infer(self, data: bytes, context: Any) -> bytes:
        """ModelInfer: a serialized ModelInferRequest to a serialized ModelInferResponse."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)
        return await self._host.infer(data, deadline, context.invocation_metadata)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ModelStreamInfer: answers in the order of the requests.

        An error is an answer, unless the caller's metadata has "triton_grpc_error: true": then it ends the stream with
        its status, as a client of Triton may ask.
        """
        strict = _has(context, STRICT_KEY, "true")
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._window)
        running: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            iterator = requests.__aiter__()
            stopping = asyncio.create_task(self._stopping.wait())
            upcoming: asyncio.Future[bytes] | None = None
            try:
                while True:
                    await room.acquire()
                    upcoming = asyncio.ensure_future(iterator.__anext__())
                    waited: set[asyncio.Future[Any]] = {upcoming, stopping}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if not upcoming.done():
                        upcoming.cancel()
                        await asyncio.gather(upcoming, return_exceptions=True)
                        return
                    try:
                        data = upcoming.result()
                    except StopAsyncIteration:
                        return
                    task = asyncio.create_task(self._host.infer_in_stream(data, strict, context.invocation_metadata))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    answers.put_nowait(task)
                    del data, task  # or a stream that idles would keep its last request and answer
            finally:
                stopping.cancel()
                if upcoming is not None:
                    upcoming.cancel()
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        task: asyncio.Task[bytes] | None = None
        try:
            while (task := await answers.get()) is not None:
                answer = await task
                room.release()
                yield answer
            await reader  # an error of the stream itself
        finally:
            reader.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(reader, *running, return_exceptions=True)
            # A task that failed keeps its error, whose traceback keeps this frame: together they would keep the request
            # until a garbage collection.
            task = None


def _has(context: Any, key: str, value: str) -> bool:
    return any(item == (key, value) for item in context.invocation_metadata() or ())


def handlers(methods: InferenceMethods) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Handlers without (de)serializers: bytes in, bytes out."""
    return {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(methods.infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(methods.stream),
    }
