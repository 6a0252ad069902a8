"""The `enginehouse-inference` command: reads the settings and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop

from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.entry import run_service
from enginehouse.rpc.server import run_until_signalled
from enginehouse.workers.environments import VARIABLES, WorkerEnvironments
from enginehouse_inference.app import InferenceApp
from enginehouse_inference.process_tuning import raise_descriptor_limit, tune_malloc
from enginehouse_inference.settings import InferenceSettings


def serve(settings: InferenceSettings) -> Coroutine[Any, Any, None]:
    """Serve until SIGTERM or SIGINT."""
    # Before any large block is allocated: freed ones go by the threshold that was set when they were made.
    tune_malloc()
    raise_descriptor_limit()  # workers inherit it
    return _serve(settings)


async def _serve(settings: InferenceSettings) -> None:
    announce = announce_file(os.environ)
    app = InferenceApp(settings, WorkerEnvironments.discover())
    await run_until_signalled(
        app.server,
        start=app.start,
        drain=app.drain,
        stopping=app.stopping,
        announce=lambda port: announce(app.ports(port)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after a signal, 1 when it could not start, 2 for wrong settings."""
    description = "Serves engines by the Open Inference Protocol, over gRPC."
    # Less CPU time a request than asyncio's own loop.
    return run_service(
        "inference",
        description,
        InferenceSettings,
        serve,
        arguments=arguments,
        variables=VARIABLES,
        run=uvloop.run,
    )
