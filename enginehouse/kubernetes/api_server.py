"""One question at a time to the Kubernetes API server, with the standard library.

For services that only ask whose a token is, and are installed without the `kubernetes` client. What lists, watches and
makes objects is `enginehouse.kubernetes.api`.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from enginehouse.errors import FailedPreconditionError, UnavailableError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class ApiServer:
    """Where the API server is and how to speak to it.

    Attributes:
        url: such as "https://10.96.0.1:443".
        token: file of the token that we call with, read for each call, because the kubelet replaces it.
        ca: PEM file of the CAs to trust, read for each call.
        timeout: seconds that a call may take.
    """

    url: str
    token: Path
    ca: Path | None = None
    timeout: float = 5.0

    @classmethod
    def in_cluster(
        cls,
        url: str = "",
        token: Path | None = None,
        ca: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> ApiServer:
        """As the pod's environment and service account say, where it is not given.

        Raises:
            FailedPreconditionError: this is no pod.
        """
        variables = os.environ if variables is None else variables
        if not url:
            host, port = variables.get("KUBERNETES_SERVICE_HOST", ""), variables.get("KUBERNETES_SERVICE_PORT", "443")
            if not host:
                raise FailedPreconditionError(
                    "this process is not in a pod (KUBERNETES_SERVICE_HOST is not set): set "
                    "ENGINEHOUSE_AUTH_KUBERNETES_URL to the API server's address"
                )
            url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        default_ca = SERVICE_ACCOUNT / "ca.crt"
        return cls(url, token or SERVICE_ACCOUNT / "token", ca or (default_ca if default_ca.exists() else None))

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Send an object; returns the status and the answer (None when it is not JSON).

        Raises:
            UnavailableError: there is no answer, or our own token cannot be read.
        """
        parts = urlsplit(self.url)
        try:
            headers = {
                "Authorization": f"Bearer {self.token.read_text().strip()}",
                "Content-Type": "application/json",
                "Accept": "application/json",
            }
            connection = self._connection(parts.scheme, parts.hostname or "", parts.port)
            try:
                connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body), headers)
                response = connection.getresponse()
                content = response.read(_MAX_ANSWER_BYTES)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            # By its class: what some of these say holds the request's headers.
            reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
            raise UnavailableError(f"the Kubernetes API server at {self.url} does not answer [{reason}]") from None
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, None

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":  # kubectl proxy, and tests
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
