"""Where Enginehouse's services are on Kubernetes: by name in the cluster, through port-forwards from outside."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.addresses import Addresses
from enginehouse.client.port_forward import PortForward
from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError
from enginehouse.rpc.channels import TLS, Credentials, Token, credentials_from

NAMESPACE = "enginehouse"
PORTS = {"optimizer": 8010, "inference": 8001, "telemetry-aggregator": 8021}
# Where manifests mount what a client needs: a service account token for our audience, and the CA of our certificates.
# Never the pod's own token: it is the API server's, and whoever got it could act as the pod there.
CLIENT_FILES = Path("/var/run/secrets/enginehouse")

Forward = Callable[[str, int, str, str], PortForward]
"""Forwards to a target's port, in a namespace of a context."""


@dataclass(frozen=True)
class Cluster:
    """The services of a namespace.

    Attributes:
        addresses: what to connect to.
        names: what their certificates are for, by service; empty where the addresses say it.
        forwards: to close once nobody calls any more.
    """

    addresses: Addresses
    names: Addresses | None = None
    forwards: tuple[PortForward, ...] = ()

    def close(self) -> None:
        for forward in self.forwards:
            forward.close()


def find_cluster(
    namespace: str = NAMESPACE,
    *,
    release: str = "enginehouse",
    context: str = "",
    variables: Mapping[str, str] | None = None,
    forward: Forward | None = None,
) -> Cluster:
    """The services of a namespace, as they can be reached from here.

    Args:
        release: what their names begin with.
        context: of the kubeconfig, outside of the cluster; the current one when empty. Given, it is a port-forward
            from inside a pod too.

    Raises:
        FailedPreconditionError, NotFoundError, UnavailableError: no port-forward, and why.
    """
    variables = os.environ if variables is None else variables
    check_namespace(namespace)
    inside = {name: f"{release}-{name}.{namespace}.svc" for name in PORTS}
    if variables.get("KUBERNETES_SERVICE_HOST") and not context:
        return Cluster(Addresses(*(f"{host}:{PORTS[name]}" for name, host in inside.items())))
    forward = forward or (lambda target, port, ns, ctx: PortForward(target, port, namespace=ns, context=ctx))
    forwards, errors = _forward_all(forward, release, namespace, context)
    # A cluster may do without telemetry; without the others there is nothing to do.
    for name, error in errors.items():
        if name != "telemetry-aggregator" or not isinstance(error, NotFoundError):
            for found in forwards.values():
                found.close()
            raise error
    reached = [forwards[name].address if name in forwards else f"{host}:{PORTS[name]}" for name, host in inside.items()]
    return Cluster(Addresses(*reached), Addresses(*inside.values()), tuple(forwards.values()))


def _forward_all(
    forward: Forward, release: str, namespace: str, context: str
) -> tuple[dict[str, PortForward], dict[str, EnginehouseError]]:
    forwards: dict[str, PortForward] = {}
    errors: dict[str, EnginehouseError] = {}

    def one(name: str) -> None:
        try:
            forwards[name] = forward(f"service/{release}-{name}", PORTS[name], namespace, context)
        except EnginehouseError as error:
            errors[name] = error

    with ThreadPoolExecutor(len(PORTS)) as threads:
        list(threads.map(one, PORTS))
    return forwards, errors


def cluster_credentials(
    tls: TLS | None,
    token: Token | None,
    variables: Mapping[str, str] | None = None,
    files: Path = CLIENT_FILES,
) -> Credentials:
    """What is given, else what the environment says, else the files that manifests mount."""
    found = credentials_from(os.environ if variables is None else variables)
    mounted_ca, mounted_token = files / "ca.crt", files / "token"
    if tls is None:
        tls = found.tls or (TLS(ca=mounted_ca) if mounted_ca.exists() else None)
    if token is None:
        token = found.token or (Token(file=mounted_token) if mounted_token.exists() else None)
    return Credentials(tls, token)


def named(tls: TLS | None, name: str) -> TLS | None:
    """TLS that expects a name, where it does not say another."""
    return tls if tls is None or tls.server_name else dataclasses.replace(tls, server_name=name)


def check_namespace(namespace: str) -> str:
    """A namespace that kubectl cannot take for an option.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not namespace or not all(c.islower() or c.isdigit() or c == "-" for c in namespace) or namespace[0] == "-":
        raise InvalidArgumentError(f"{namespace!r} is no namespace: expected lower-case letters, digits and -")
    return namespace
