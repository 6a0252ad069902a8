"""The `enginehouse-inference` command."""

from __future__ import annotations

import asyncio
import os
import sys

from pydantic import ValidationError

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.logging import configure_logging
from enginehouse.rpc.server import run_until_signalled
from enginehouse.workers.environments import WorkerEnvironments
from enginehouse_inference.app import InferenceApp
from enginehouse_inference.process_tuning import raise_descriptor_limit, tune_malloc
from enginehouse_inference.settings import InferenceSettings


async def serve(settings: InferenceSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    announce = announce_file(os.environ)
    app = InferenceApp(settings, WorkerEnvironments.discover())
    await run_until_signalled(
        app.server,
        start=app.start,
        drain=app.drain,
        stopping=app.stopping,
        announce=lambda port: announce({"port": port}),
    )


def main() -> None:
    """Read the settings from the environment and serve."""
    try:
        settings = InferenceSettings()
    except ValidationError as error:
        sys.exit(f"enginehouse-inference: bad settings: {error}")
    configure_logging(level=settings.log_level, format=settings.log_format, service="inference")
    # Before any large block is allocated: freed ones go by the threshold that was set when they were made.
    tune_malloc()
    raise_descriptor_limit()  # workers inherit it
    try:
        asyncio.run(serve(settings))
    except EnginehouseError as error:
        sys.exit(f"enginehouse-inference: {error.message}")


if __name__ == "__main__":
    main()
