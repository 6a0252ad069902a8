"""Settings that every service has: environment variables `ENGINEHOUSE_*`, the same names as in the Helm values."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """Base of a service's settings; subclasses add theirs and override the default port."""

    model_config = SettingsConfigDict(env_prefix="ENGINEHOUSE_", env_nested_delimiter="__", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    project: str = Field(default="default", description="Project that a process serves where it serves one.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain; plain text when absent."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the server's private key.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of CAs; clients must then show a certificate (mutual TLS)."
    )
    max_concurrent_rpcs: int = Field(
        default=1000, ge=1, description="Calls served at once; more answer RESOURCE_EXHAUSTED."
    )
    max_message_bytes: int = Field(
        default=64 << 20, ge=1 << 20, description="Largest request or response message, in bytes."
    )
    max_connection_age_seconds: float = Field(
        default=600.0,
        gt=0,
        description="Connections are asked to reconnect after this, so that new replicas get traffic.",
    )
    drain_seconds: float = Field(
        default=25.0, ge=0, description="After SIGTERM, how long calls in flight may take to finish."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error: what is logged, and what is worse."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="json, a line for each event, or console, for people."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("ENGINEHOUSE_TLS_CERTIFICATE and ENGINEHOUSE_TLS_KEY go together: set both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("ENGINEHOUSE_TLS_CLIENT_CA needs ENGINEHOUSE_TLS_CERTIFICATE and ENGINEHOUSE_TLS_KEY")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False
