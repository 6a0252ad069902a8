"""What all commands share: the global options, and a client of the services that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from enginehouse.client import AsyncClient, Client
from enginehouse.local.state import home_of


@dataclass
class Globals:
    """The global options; None leaves it to the environment and the local stack."""

    debug: bool = False
    home: Path | None = None
    project: str | None = None
    optimizer: str | None = None
    inference: str | None = None
    telemetry: str | None = None
    client_namespace: str | None = None
    client_token_file: Path | None = None
    client_ca: Path | None = None


current = Globals()


def debugging() -> bool:
    """Whether errors show their traceback."""
    return current.debug or bool(os.environ.get("ENGINEHOUSE_DEBUG"))


def home() -> Path:
    """The local stack's folder."""
    return current.home or home_of()


def variables() -> dict[str, str]:
    """The environment with the global options over it."""
    found = {**os.environ, "ENGINEHOUSE_HOME": str(home())}
    for option in fields(Globals):
        value = getattr(current, option.name)
        if value is not None and option.name not in ("debug", "home"):
            found[f"ENGINEHOUSE_{option.name.upper()}"] = str(value)
    if current.client_token_file is not None:
        found.pop("ENGINEHOUSE_CLIENT_TOKEN", None)
    return found


@contextmanager
def connected(timeout: float = 30.0) -> Iterator[Client]:
    """A client for the length of a command."""
    with Client.from_environment(variables(), timeout=timeout) as client:
        yield client


def asynchronous() -> AsyncClient:
    """An asynchronous client, for what runs in a loop of its own."""
    return AsyncClient.from_environment(variables())
