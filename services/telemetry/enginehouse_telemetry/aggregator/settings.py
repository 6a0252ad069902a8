"""The aggregator's settings: environment variables `ENGINEHOUSE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from enginehouse.rpc.settings import ServerSettings
from enginehouse_telemetry.aggregator.discovery import split_addresses
from enginehouse_telemetry.aggregator.endpoint_slices import parse_service
from enginehouse_telemetry.settings import LONGEST_PERIOD, OFF, SHORTEST_PERIOD


class AggregatorSettings(ServerSettings):
    """The aggregator's settings."""

    port: int = Field(default=8021, ge=0, le=65535, description="Port of gRPC; 0 takes a free one.")
    metrics_port: int | None = Field(
        default=9401, ge=0, le=65535, description='Port of Prometheus metrics; 0 takes a free one, "off" serves none.'
    )
    metrics_host: str | None = Field(default=None, description="Address of the metrics; ENGINEHOUSE_HOST when absent.")
    agents: str = Field(
        default="",
        description="Agents, host:port with commas between. A name stands for every address that it has, such as that "
        "of a headless Service.",
    )
    agents_service: str = Field(
        default="",
        description="Instead: the agents' Service on Kubernetes, namespace/name:port (a number or the port's name), "
        "whose EndpointSlices are watched.",
    )
    resolve_seconds: float = Field(
        default=10.0, ge=1, description="Time between look-ups of names in ENGINEHOUSE_AGENTS."
    )
    interval_seconds: float = Field(
        default=1.0,
        ge=SHORTEST_PERIOD,
        le=LONGEST_PERIOD,
        description="Time between samples that each agent is asked for.",
    )
    late_seconds: float = Field(
        default=3.0, gt=0, description="A node is late when there is no sample for so long (three intervals at least)."
    )
    lost_seconds: float = Field(default=15.0, gt=0, description="A node is lost when there is no sample for so long.")
    slow_consumer_seconds: float = Field(
        default=10.0, gt=0, description="A reader that takes nothing for so long is cut off with RESOURCE_EXHAUSTED."
    )
    max_nodes: int = Field(default=10_000, ge=1, description="Nodes at most; agents of more are refused, and counted.")
    agent_tls: bool = Field(default=False, description="Whether agents speak TLS.")
    agent_ca: Path | None = Field(default=None, description="PEM file of CAs for agents; the system's when absent.")
    agent_certificate: Path | None = Field(default=None, description="PEM file of our certificate, for mutual TLS.")
    agent_key: Path | None = Field(default=None, description="PEM file of our private key, for mutual TLS.")
    agent_server_name: str = Field(default="", description="The name to expect in the agents' certificates.")
    agent_token_file: Path | None = Field(
        default=None, description="File with a token to show to agents; read anew for every connection."
    )

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value in (OFF, "") else value

    @model_validator(mode="after")
    def _agents_are_named(self) -> AggregatorSettings:
        if bool(self.agents.strip()) == bool(self.agents_service.strip()):
            raise ValueError("set ENGINEHOUSE_AGENTS or ENGINEHOUSE_AGENTS_SERVICE, and not both")
        if self.agents_service:
            parse_service(self.agents_service)
        else:
            split_addresses(self.agents)
        if (self.agent_certificate is None) != (self.agent_key is None):
            raise ValueError("ENGINEHOUSE_AGENT_CERTIFICATE and ENGINEHOUSE_AGENT_KEY go together")
        if not self.agent_tls and (self.agent_ca or self.agent_certificate):
            raise ValueError("ENGINEHOUSE_AGENT_CA and ENGINEHOUSE_AGENT_CERTIFICATE need ENGINEHOUSE_AGENT_TLS=true")
        if self.lost_seconds <= self.late_seconds:
            raise ValueError("ENGINEHOUSE_LOST_SECONDS must be more than ENGINEHOUSE_LATE_SECONDS")
        return self
