"""Where a local stack keeps its state, and what the state file says. Standard library only: the SDK reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SERVICES = ("optimizer", "inference", "telemetry")
DEFAULT_HOME = ".enginehouse"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class ServiceState:
    """A service's process.

    Attributes:
        name: the service's, with the device after it ("inference-cuda-1") where several processes share it.
        start_time: seconds since 1970; tells it from a later process with the same pid.
        device: that an inference process serves on, such as "cuda:1".
        device_name: its product.
    """

    name: str
    pid: int
    start_time: float
    port: int
    log: str
    device: str = ""
    device_name: str = ""

    @property
    def service(self) -> str:
        """Which of the services it is."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class StackState:
    """The stack that `up` started."""

    services: tuple[ServiceState, ...]
    host: str = "127.0.0.1"

    def addresses(self) -> dict[str, str]:
        """Each service's "host:port" by its name; of several processes all, with commas between."""
        found: dict[str, list[str]] = {}
        for process in self.services:
            found.setdefault(process.service, []).append(f"{self.host}:{process.port}")
        return {service: ",".join(addresses) for service, addresses in found.items()}


def home_of(variables: Mapping[str, str] | None = None) -> Path:
    """The stack's folder: ENGINEHOUSE_HOME, else `.enginehouse` in the current one."""
    variables = os.environ if variables is None else variables
    return Path(variables.get("ENGINEHOUSE_HOME") or DEFAULT_HOME)


def read_state(home: Path) -> StackState | None:
    """The state in a folder; None when there is none, or none that can be read."""
    try:
        value = json.loads((home / STATE_FILE).read_text())
        return StackState(tuple(ServiceState(**service) for service in value["services"]), str(value["host"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(home: Path, state: StackState) -> None:
    """Write the state in one step: a reader sees the old file or the new one."""
    temporary = home / f"{STATE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n")
    temporary.replace(home / STATE_FILE)


def remove_state(home: Path) -> None:
    """Forget the stack."""
    (home / STATE_FILE).unlink(missing_ok=True)
