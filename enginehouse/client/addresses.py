"""Where the services are: as given, as the environment says, as the local stack announced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.local.state import home_of, read_state
from enginehouse.names import DEFAULT_PROJECT
from enginehouse.rpc.channels import TLS, Credentials, credentials_from

OPTIMIZER = "127.0.0.1:8010"
INFERENCE = "127.0.0.1:8001"
TELEMETRY = "127.0.0.1:8020"


@dataclass(frozen=True)
class Addresses:
    """The three services, each as "host:port"; several inference servers with commas between."""

    optimizer: str = OPTIMIZER
    inference: str = INFERENCE
    telemetry: str = TELEMETRY


@dataclass(frozen=True)
class ClientSettings:
    """What the environment says of a client."""

    addresses: Addresses
    project: str
    credentials: Credentials
    namespace: str = ""

    @property
    def tls(self) -> TLS | None:
        return self.credentials.tls


def from_environment(variables: Mapping[str, str] | None = None) -> ClientSettings:
    """Read the variables (the process's own by default), then the local stack's state, then take the defaults."""
    variables = os.environ if variables is None else variables
    state = read_state(home_of(variables))
    local = state.addresses() if state is not None else {}
    addresses = Addresses(
        optimizer=variables.get("ENGINEHOUSE_OPTIMIZER") or local.get("optimizer", OPTIMIZER),
        inference=variables.get("ENGINEHOUSE_INFERENCE") or local.get("inference", INFERENCE),
        telemetry=variables.get("ENGINEHOUSE_TELEMETRY") or local.get("telemetry", TELEMETRY),
    )
    return ClientSettings(
        addresses,
        variables.get("ENGINEHOUSE_PROJECT") or DEFAULT_PROJECT,
        credentials_from(variables),
        variables.get("ENGINEHOUSE_CLIENT_NAMESPACE", ""),
    )
