"""Settings that every service has: environment variables `ENGINEHOUSE_*`, the same names as in the Helm values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from enginehouse.rpc.channels import TLS, Credentials, Token, is_loopback


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
    health_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of a second, plain-text server that answers health checks and nothing else: Kubernetes' gRPC "
        "probes do not speak TLS. 0 takes a free one.",
    )
    auth: Literal["none", "tokens", "kubernetes"] = Field(
        default="none",
        description="Who may call: none, everybody (or, with mutual TLS, whoever has a certificate); tokens, those in "
        "a file; kubernetes, those that the cluster's API server knows (TokenReview).",
    )
    auth_tokens_file: Path | None = Field(
        default=None, description="File of token digests, one a line, for ENGINEHOUSE_AUTH=tokens; read as it changes."
    )
    auth_roles_file: Path | None = Field(
        default=None,
        description="YAML file that binds principals and groups to roles (docs/security.md); read as it changes.",
    )
    auth_audience: str = Field(
        default="enginehouse", min_length=1, description="What service account tokens must be made for."
    )
    auth_allow_plaintext: bool = Field(
        default=False,
        description="Take tokens over plain text from other machines: where a mesh or the network encrypts.",
    )
    auth_kubernetes_url: str = Field(
        default="", pattern=r"^($|https?://)", description="The cluster's API server; the pod's own when empty."
    )
    auth_kubernetes_token_file: Path | None = Field(
        default=None, description="Token to ask the API server with; the pod's service account's when absent."
    )
    auth_kubernetes_ca: Path | None = Field(
        default=None,
        description="PEM file of the API server's CAs; the service account's, or the system's, when absent.",
    )
    client_tls: bool = Field(default=False, description="Speak TLS to other services, also without the files below.")
    client_ca: Path | None = Field(
        default=None, description="PEM file of the CAs that other services' certificates have."
    )
    client_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate to show to other services (mutual TLS)."
    )
    client_key: Path | None = Field(default=None, description="PEM file of that certificate's private key.")
    client_token_file: Path | None = Field(
        default=None, description="File of the token to call other services with; read as it changes."
    )
    client_allow_plaintext: bool = Field(
        default=False, description="Send that token over plain text to other machines: where a mesh encrypts."
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
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError(
                "ENGINEHOUSE_CLIENT_CERTIFICATE and ENGINEHOUSE_CLIENT_KEY go together: set both or neither"
            )
        return self

    @model_validator(mode="after")
    def _auth_is_whole(self) -> ServerSettings:
        if self.auth == "tokens" and self.auth_tokens_file is None:
            raise ValueError("ENGINEHOUSE_AUTH=tokens needs ENGINEHOUSE_AUTH_TOKENS_FILE")
        if self.auth != "none" and self.auth_roles_file is None:
            raise ValueError(
                f"ENGINEHOUSE_AUTH={self.auth} needs ENGINEHOUSE_AUTH_ROLES_FILE: without roles nobody may do anything"
            )
        if self.auth_roles_file is not None and self.auth == "none" and self.tls_client_ca is None:
            raise ValueError(
                "ENGINEHOUSE_AUTH_ROLES_FILE needs callers who are known: set ENGINEHOUSE_AUTH to tokens or "
                "kubernetes, or ENGINEHOUSE_TLS_CLIENT_CA"
            )
        if self.auth != "none" and self.tls_certificate is None and not (self.is_loopback or self.auth_allow_plaintext):
            raise ValueError(
                f"ENGINEHOUSE_AUTH={self.auth} on {self.host} without TLS: whoever sees the traffic has the tokens. "
                "Set ENGINEHOUSE_TLS_CERTIFICATE and ENGINEHOUSE_TLS_KEY, or ENGINEHOUSE_AUTH_ALLOW_PLAINTEXT=true "
                "where a mesh or the network encrypts"
            )
        return self

    @property
    def client_credentials(self) -> Credentials:
        """How this service calls others.

        Raises:
            InvalidArgumentError: the files do not go together.
        """
        files = TLS(self.client_ca, self.client_certificate, self.client_key)
        tls = files if self.client_tls or files != TLS() else None
        file = self.client_token_file
        token = Token(file=file, allow_plaintext=self.client_allow_plaintext) if file else None
        return Credentials(tls, token)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(f"{self.host}:{self.port}")
