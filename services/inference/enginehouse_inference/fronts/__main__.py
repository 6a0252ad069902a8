"""`python -m enginehouse_inference.fronts NUMBER PORT DESCRIPTOR`: one front process, started by the engine host.

It has the engine host's environment, and so its settings. It ends when the engine host tells it to drain (with status
0), or when that is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import structlog
import uvloop

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.logging import configure_logging
from enginehouse_inference.fronts.connection import Connection
from enginehouse_inference.fronts.messages import Kind
from enginehouse_inference.fronts.remote import RemoteHost
from enginehouse_inference.fronts.servers import KEEP_BYTES
from enginehouse_inference.process_tuning import raise_descriptor_limit, tune_malloc
from enginehouse_inference.service.inference import InferenceMethods
from enginehouse_inference.service.register import front_server
from enginehouse_inference.settings import InferenceSettings

_log = structlog.get_logger("front")

ENGINE_HOST_GONE = 3


async def serve(settings: InferenceSettings, sock: socket.socket) -> int:
    """Serve until the engine host says to drain, or is gone; returns the exit status."""
    connection = Connection(sock)
    draining = asyncio.Event()
    news: asyncio.Queue[tuple[bool, tuple[str, ...]]] = asyncio.Queue()
    host = RemoteHost(
        connection,
        on_health=lambda ready, services: news.put_nowait((ready, tuple(services))),
        on_drain=draining.set,
        keep_bytes=KEEP_BYTES,
    )
    methods = InferenceMethods(host, settings.stream_window)
    server = front_server(settings, methods, host, None, [("grpc.so_reuseport", 1)])
    await server.start()

    async def follow() -> None:
        while True:
            ready, services = await news.get()
            await server.set_ready(ready, *services)

    following = asyncio.create_task(follow())
    connection.send(Kind.LISTENING)
    drained, gone = asyncio.create_task(draining.wait()), asyncio.create_task(connection.lost.wait())
    await asyncio.wait({drained, gone}, return_when=asyncio.FIRST_COMPLETED)
    following.cancel()
    if gone.done():
        _log.error("the engine host is gone")
        return ENGINE_HOST_GONE
    await server.set_ready(False)
    methods.stop_streams()
    stopped = asyncio.create_task(server.stop())
    await asyncio.wait({stopped, gone}, return_when=asyncio.FIRST_COMPLETED)
    return ENGINE_HOST_GONE if gone.done() else 0


def main(arguments: list[str]) -> int:
    number, port, descriptor = (int(argument) for argument in arguments)
    # The engine host decides when we end: a terminal's or a supervisor's signal reaches it too.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    tune_malloc()
    raise_descriptor_limit()
    # Probes have a port of their own, which only one process can have.
    changes = {"port": port} if number == 0 else {"port": port, "health_port": None}
    settings = InferenceSettings().model_copy(update=changes)
    configure_logging(level=settings.log_level, format=settings.log_format, service=f"inference-front-{number}")
    return uvloop.run(_run(settings, socket.socket(fileno=descriptor)))


async def _run(settings: InferenceSettings, sock: socket.socket) -> int:
    try:
        status = await serve(settings, sock)
    except EnginehouseError as error:
        _log.error("cannot start", reason=error.message)
        status = 1
    sys.stderr.flush()
    # Nothing of ours is left to close, and a server that was not stopped would keep the loop from ending.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
