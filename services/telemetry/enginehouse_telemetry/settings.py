"""The service's settings: environment variables `ENGINEHOUSE_*`."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from enginehouse.rpc.settings import ServerSettings

SHORTEST_PERIOD, LONGEST_PERIOD = 0.1, 60.0

OFF = "off"


def default_node() -> str:
    """The host's name, as far as it can stand in a resource name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:191]
    return name or "node"


class TelemetrySettings(ServerSettings):
    """The telemetry service's settings."""

    port: int = Field(default=8020, ge=0, le=65535, description="Port of gRPC; 0 takes a free one.")
    metrics_port: int | None = Field(
        default=9400, ge=0, le=65535, description='Port of Prometheus metrics; 0 takes a free one, "off" serves none.'
    )
    metrics_host: str | None = Field(default=None, description="Address of the metrics; ENGINEHOUSE_HOST when absent.")
    node_name: str = Field(
        default_factory=default_node,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,190}$",
        description="The node's name; the host's name when absent. On Kubernetes spec.nodeName.",
    )
    sample_period_seconds: float = Field(
        default=1.0,
        ge=SHORTEST_PERIOD,
        le=LONGEST_PERIOD,
        description="Time between samples when no stream asks for less.",
    )
    detail_period_seconds: float = Field(
        default=1.0,
        ge=SHORTEST_PERIOD,
        le=LONGEST_PERIOD,
        description="Time between readings of what is slow or seldom changes: processes, ECC, PCIe throughput, fan.",
    )
    history_seconds: float = Field(default=600.0, ge=1, le=86400, description="How long past samples are kept.")
    history_max_bytes: int = Field(
        default=64 << 20, ge=1 << 20, description="Bytes that past samples may take; the oldest go first."
    )
    pod_resources_socket: Path | None = Field(
        default=None,
        description="The kubelet's pod-resources socket, for which containers hold which GPU; none are asked for when "
        "absent. On Kubernetes /var/lib/kubelet/pod-resources/kubelet.sock.",
    )
    stream_queue: int = Field(default=16, ge=1, le=1000, description="Samples that may wait for a slow stream.")

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value in (OFF, "") else value
