"""The entry point of every service: settings, `--help`, logs, serving, and an exit status that says how it ended."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.announce import ANNOUNCE_VARIABLE
from enginehouse.rpc.logging import configure_logging
from enginehouse.rpc.settings import ServerSettings

STOPPED, CANNOT_START, WRONG_SETTINGS = 0, 1, 2

Settings = TypeVar("Settings", bound=ServerSettings)

_PREFIX = "ENGINEHOUSE_"
_VARIABLES = {ANNOUNCE_VARIABLE: "File that receives the ports and the process id as JSON, once the service is ready."}


def run_service(
    name: str,
    description: str,
    settings: type[Settings],
    serve: Callable[[Settings], Coroutine[Any, Any, None]],
    *,
    arguments: Sequence[str] | None = None,
    variables: Mapping[str, str] | None = None,
    run: Callable[[Coroutine[Any, Any, None]], object] = asyncio.run,
) -> int:
    """Run one service until SIGTERM or SIGINT.

    Args:
        name: such as "optimizer"; its command is `enginehouse-{name}`.
        description: one line for `--help`.
        serve: serves until a signal; called before there is an event loop, awaited in it.
        arguments: the command line's; `sys.argv`'s when None.
        variables: environment variables that it reads beside its settings, and what they mean.
        run: runs a coroutine in an event loop of its own.

    Returns:
        The exit status: 0 after a signal, 1 when the service could not start, 2 for wrong settings.
    """
    command = f"enginehouse-{name}"
    parser = argparse.ArgumentParser(
        prog=command,
        description=description,
        epilog=settings_help(settings, {**_VARIABLES, **(variables or {})}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        chosen = settings()
    except (ValidationError, SettingsError) as error:
        print(f"{command}: wrong settings:", *_wrong(error, settings), sep="\n  ", file=sys.stderr)
        return WRONG_SETTINGS
    configure_logging(level=chosen.log_level, format=chosen.log_format, service=name)
    try:
        run(serve(chosen))
    except EnginehouseError as error:
        print(f"{command}: {error.message}", file=sys.stderr)
        return CANNOT_START
    return STOPPED


def settings_help(settings: type[ServerSettings], variables: Mapping[str, str]) -> str:
    """Each environment variable with its default, then what it means."""
    lines = ["environment variables, with their defaults:"]
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True)  # type: ignore[call-arg, unused-ignore]
        lines += [f"  {_PREFIX}{name.upper()} [{_shown(default)}]", f"      {field.description}"]
    for name, meaning in variables.items():
        lines += [f"  {name} []", f"      {meaning}"]
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, BaseModel):
        return default.model_dump_json()
    return json.dumps(default) if isinstance(default, dict | list | tuple) else str(default)


def _wrong(error: ValidationError | SettingsError, settings: type[ServerSettings]) -> list[str]:
    """One line for each wrong variable. A field that pydantic is told not to show (`repr=False`) may hold a secret."""
    if isinstance(error, SettingsError):  # a variable that should be JSON and is not; it names the field
        return [f"{error}: expected JSON"]
    lines = []
    for found in error.errors():
        where = "__".join(str(part) for part in found["loc"])
        field = settings.model_fields.get(str(found["loc"][0])) if where else None
        given = f"={found['input']!r}" if where and (field is None or field.repr) else ""
        lines.append(f"{_PREFIX}{where.upper()}{given} ({where}): {found['msg']}" if where else found["msg"])
    return lines
