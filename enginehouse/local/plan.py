"""What to start: each service's command and environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from enginehouse.errors import FailedPreconditionError
from enginehouse.local.devices import LocalDevice
from enginehouse.local.ports import HOST
from enginehouse.local.state import SERVICES

DEFAULT_PORTS: Mapping[str, int] = {"optimizer": 8010, "inference": 8001, "telemetry": 8020}
METRICS_PORT = 9400


@dataclass(frozen=True)
class StackOptions:
    """How to start a stack.

    Attributes:
        home: the folder of its state, logs, data and caches.
        ports: each service's port; 0 takes a free one. Of several inference processes it is the first one's, and the
            others take those after it.
        metrics_port: of telemetry's Prometheus metrics; 0 takes a free one, None serves none.
        timeout: seconds that a service may take until it is ready.
        variables: environment variables for the services, beside this process's own.
        devices: that inference processes are started on, one each; `choose_devices` says what it may be.
        services: those to start.
        optimizer: address of the one to follow where none is started; empty follows none.
        host: the address to listen on.
    """

    home: Path
    ports: Mapping[str, int] = field(default_factory=lambda: dict(DEFAULT_PORTS))
    metrics_port: int | None = METRICS_PORT
    timeout: float = 60.0
    variables: Mapping[str, str] = field(default_factory=dict)
    devices: str | None = None
    services: tuple[str, ...] = SERVICES
    optimizer: str = ""
    host: str = HOST

    @property
    def contact(self) -> str:
        """The host to reach the services at from this machine."""
        return {"0.0.0.0": HOST, "::": "[::1]"}.get(self.host, self.host)


@dataclass(frozen=True)
class ProcessPlan:
    """A process to start; see `ServiceState` for the name. An inference process has a device."""

    name: str
    service: str
    port: int
    device: LocalDevice | None = None


def processes_of(options: StackOptions, devices: Sequence[LocalDevice]) -> list[ProcessPlan]:
    """The processes of a stack, those of inference last: one a device, on ports that follow each other."""
    others = [ProcessPlan(name, name, options.ports[name]) for name in options.services if name != "inference"]
    if "inference" not in options.services:
        return others
    first = options.ports["inference"]
    return others + [
        ProcessPlan(
            "inference" if len(devices) == 1 else f"inference-{device.id.replace(':', '-')}",
            "inference",
            first + number if first else 0,
            device,
        )
        for number, device in enumerate(devices)
    ]


def command_of(service: str) -> list[str]:
    """The command that runs a service with this Python."""
    return [sys.executable, "-m", f"enginehouse_{service}"]


def variables_of(process: ProcessPlan, options: StackOptions, optimizer: str | None) -> dict[str, str]:
    """A process's whole environment; `optimizer` is the optimizer's address, once it has one."""
    home = options.home.resolve()
    variables = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that CUDA counts GPUs as NVML does
        **os.environ,
        **options.variables,
        "ENGINEHOUSE_HOST": options.host,
        "ENGINEHOUSE_PORT": str(process.port),
        "ENGINEHOUSE_DATA_DIR": str(home / "data" / process.name),
        "ENGINEHOUSE_CACHE_DIR": str(home / "cache" / process.name),
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announcement_of(home, process.name)),
    }
    # One port cannot serve the metrics of several processes: only telemetry's is the same every time.
    variables["ENGINEHOUSE_METRICS_PORT"] = "0"
    if process.service == "telemetry":
        variables["ENGINEHOUSE_METRICS_PORT"] = "off" if options.metrics_port is None else str(options.metrics_port)
    if process.device is not None:
        variables["ENGINEHOUSE_DEVICE"] = process.device.id
    if optimizer is not None:
        variables["ENGINEHOUSE_OPTIMIZER"] = optimizer
    return variables


def announcement_of(home: Path, name: str) -> Path:
    """The file in which a process says its port."""
    return home / "run" / f"{name}.json"


def log_of(home: Path, name: str) -> Path:
    """The file with what a process prints."""
    return home / "logs" / f"{name}.log"


def make_folders(home: Path, processes: Sequence[ProcessPlan]) -> None:
    """Make the folders that the processes and we write to."""
    for name in ("run", "logs", *(f"{kind}/{process.name}" for kind in ("data", "cache") for process in processes)):
        (home / name).mkdir(parents=True, exist_ok=True)


def check_installed(services: Sequence[str]) -> None:
    """Refuse to start what is not there.

    Raises:
        FailedPreconditionError: a service is not installed in this Python.
    """
    missing = [f"enginehouse_{service}" for service in services if find_spec(f"enginehouse_{service}") is None]
    if missing:
        raise FailedPreconditionError(
            f"not installed in {sys.executable}: {', '.join(missing)}. In a checkout, `make install` installs all "
            "three; or set ENGINEHOUSE_OPTIMIZER, _INFERENCE and _TELEMETRY to services that run elsewhere"
        )
