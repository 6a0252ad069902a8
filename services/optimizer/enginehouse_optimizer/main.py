"""The `enginehouse-optimizer` command: reads the settings and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.logging import configure_logging
from enginehouse.rpc.server import run_until_signalled
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


def settings_help() -> str:
    """One line for each setting: its variable, its default, what it means."""
    lines = ["environment variables:"]
    for name, field in OptimizerSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        lines.append(f"  ENGINEHOUSE_{name.upper()} [{'' if default is None else default}]  {field.description or ''}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after a signal, 1 when it could not start, 2 for wrong settings."""
    parser = argparse.ArgumentParser(
        prog="enginehouse-optimizer",
        description="Turns models into engines and keeps them, over gRPC.",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        settings = OptimizerSettings()  # type: ignore[call-arg, unused-ignore]
    except ValidationError as error:
        print(f"enginehouse-optimizer: wrong settings (ENGINEHOUSE_*): {error}", file=sys.stderr)
        return 2
    configure_logging(level=settings.log_level, format=settings.log_format, service="optimizer")
    try:
        asyncio.run(serve(settings))
    except EnginehouseError as error:
        print(f"enginehouse-optimizer: {error.message}", file=sys.stderr)
        return 1
    return 0
