"""The `enginehouse-optimizer` command: reads the settings and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import os
from collections.abc import Sequence

from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.entry import run_service
from enginehouse.rpc.server import run_until_signalled
from enginehouse.workers.environments import VARIABLES
from enginehouse_optimizer.app import OptimizerApp, OptimizerServer
from enginehouse_optimizer.settings import OptimizerSettings


async def serve(settings: OptimizerSettings) -> None:
    """Run one optimizer.

    Raises:
        EnginehouseError: it cannot start.
    """
    app = OptimizerApp(settings)
    server = OptimizerServer(settings, app)
    announce = announce_file(os.environ)
    await run_until_signalled(server, start=app.start, drain=app.close, announce=lambda port: announce({"port": port}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after a signal, 1 when it could not start, 2 for wrong settings."""
    description = "Turns models into engines and keeps them, over gRPC."
    return run_service("optimizer", description, OptimizerSettings, serve, arguments=arguments, variables=VARIABLES)
