"""What to start: each service's command and environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from enginehouse.errors import FailedPreconditionError
from enginehouse.local.ports import HOST
from enginehouse.local.state import SERVICES

DEFAULT_PORTS: Mapping[str, int] = {"optimizer": 8010, "inference": 8001, "telemetry": 8020}
METRICS_PORT = 9400


@dataclass(frozen=True)
class StackOptions:
    """How to start a stack.

    Attributes:
        home: the folder of its state, logs, data and caches.
        ports: each service's port; 0 takes a free one.
        metrics_port: of telemetry's Prometheus metrics; 0 takes a free one, None serves none.
        timeout: seconds that a service may take until it is ready.
        variables: environment variables for the services, beside this process's own.
    """

    home: Path
    ports: Mapping[str, int] = field(default_factory=lambda: dict(DEFAULT_PORTS))
    metrics_port: int | None = METRICS_PORT
    timeout: float = 60.0
    variables: Mapping[str, str] = field(default_factory=dict)


def command_of(service: str) -> list[str]:
    """The command that runs a service with this Python."""
    return [sys.executable, "-m", f"enginehouse_{service}"]


def variables_of(service: str, options: StackOptions, optimizer: str | None) -> dict[str, str]:
    """A service's whole environment; `optimizer` is the optimizer's address, once it has one."""
    home = options.home.resolve()
    variables = {
        **os.environ,
        **options.variables,
        "ENGINEHOUSE_HOST": HOST,
        "ENGINEHOUSE_PORT": str(options.ports[service]),
        "ENGINEHOUSE_DATA_DIR": str(home / "data" / service),
        "ENGINEHOUSE_CACHE_DIR": str(home / "cache" / service),
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announcement_of(home, service)),
    }
    # One port cannot serve the metrics of several services: only telemetry's is the same every time.
    variables["ENGINEHOUSE_METRICS_PORT"] = "0"
    if service == "telemetry":
        variables["ENGINEHOUSE_METRICS_PORT"] = "off" if options.metrics_port is None else str(options.metrics_port)
    if optimizer is not None:
        variables["ENGINEHOUSE_OPTIMIZER"] = optimizer
    return variables


def announcement_of(home: Path, service: str) -> Path:
    """The file in which a service says its port."""
    return home / "run" / f"{service}.json"


def log_of(home: Path, service: str) -> Path:
    """The file with what a service prints."""
    return home / "logs" / f"{service}.log"


def make_folders(home: Path) -> None:
    """Make the folders that the services and we write to."""
    for name in ("run", "logs", *(f"{kind}/{service}" for kind in ("data", "cache") for service in SERVICES)):
        (home / name).mkdir(parents=True, exist_ok=True)


def check_installed() -> None:
    """Refuse to start what is not there.

    Raises:
        FailedPreconditionError: a service is not installed in this Python.
    """
    missing = [f"enginehouse_{service}" for service in SERVICES if find_spec(f"enginehouse_{service}") is None]
    if missing:
        raise FailedPreconditionError(
            f"not installed in {sys.executable}: {', '.join(missing)}. In a checkout, `make install` installs all "
            "three; or set ENGINEHOUSE_OPTIMIZER, _INFERENCE and _TELEMETRY to services that run elsewhere"
        )
