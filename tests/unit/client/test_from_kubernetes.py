"""Clients of a cluster: by the services' names inside, through port-forwards outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from certificates_for_tests import make_ca, sign
from client_servers import Servers
from guarded_server import CI_TOKEN, guarded, with_tokens

from enginehouse import TLS, AsyncClient, Client
from enginehouse.client import port_forward
from enginehouse.client.cluster import cluster_credentials, find_cluster
from enginehouse.client.port_forward import PortForward
from enginehouse.errors import (
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

SERVICES = (
    "service/enginehouse-optimizer",
    "service/enginehouse-inference",
    "service/enginehouse-telemetry-aggregator",
)


class Kubectl:
    """The double on the PATH, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leads(self, **targets: object) -> None:
        (self.folder / "targets.json").write_text(json.dumps(targets))

    def leads_to(self, address: str, services: tuple[str, ...] = SERVICES) -> None:
        self.leads(**dict.fromkeys(services, int(address.rpartition(":")[2])))

    @property
    def starts(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "starts").read_text().splitlines()]

    @property
    def processes(self) -> list[int]:
        """Those that run."""
        return [int(pid) for pid in (self.folder / "pids").read_text().split() if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    folder = tmp_path / "kubectl-double"
    folder.mkdir()
    script = folder / "kubectl"
    script.write_text(
        f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("kubectl_double.py")} {folder} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return Kubectl(folder)


async def test_outside_of_the_cluster_calls_go_through_port_forwards(kubectl: Kubectl, servers: Servers) -> None:
    kubectl.leads_to(servers.address)
    async with await AsyncClient.from_kubernetes("tests", timeout=10, context="other") as client:
        assert await client.models.list() == []
        assert (await client.infer("double", np.ones((1, 3), np.float32))).only().tolist() == [[2.0] * 3]
        assert (await client.telemetry.snapshot()).sequence
        assert len(kubectl.processes) == 3
    assert kubectl.processes == []
    assert sorted(start[-2:] for start in kubectl.starts) == [
        ["service/enginehouse-inference", ":8001"],
        ["service/enginehouse-optimizer", ":8010"],
        ["service/enginehouse-telemetry-aggregator", ":8021"],
    ]
    assert all(start[:4] == ["--namespace", "tests", "--context", "other"] for start in kubectl.starts)


async def test_a_port_forward_that_ends_begins_again(kubectl: Kubectl, servers: Servers) -> None:
    """As kubectl's does when its pod goes."""
    kubectl.leads_to(servers.address)
    async with await AsyncClient.from_kubernetes("tests", timeout=10) as client:
        await client.models.list()
        before = client.addresses
        for pid in kubectl.processes:
            os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            try:
                assert await client.models.list() == []
                break
            except UnavailableError:
                await asyncio.sleep(0.1)
        else:
            pytest.fail("it did not come back")
        assert client.addresses == before and len(kubectl.starts) > 3


def test_the_synchronous_client_ends_them_too(kubectl: Kubectl, sync_servers: Servers) -> None:
    kubectl.leads_to(sync_servers.address)
    with Client.from_kubernetes("tests") as client:
        assert client.models.list() == []
    assert kubectl.processes == []
    Client.from_kubernetes("tests").close()  # never used
    assert kubectl.processes == []


async def test_certificates_are_for_the_services_names(kubectl: Kubectl, tmp_path: Path) -> None:
    make_ca(tmp_path)
    names = ",".join(f"DNS:{service.split('/')[1]}.tests.svc" for service in SERVICES)
    sign(tmp_path, "server", alternatives=names)
    settings = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    async with guarded({**with_tokens(tmp_path), **settings}) as it:
        kubectl.leads_to(it.address)
        tls = TLS(ca=tmp_path / "ca.pem")
        async with await AsyncClient.from_kubernetes("tests", project="mine", tls=tls, token=CI_TOKEN) as client:
            await client.blobs.size("sha256:" + "0" * 64)
            assert [principal.name for principal in it.blobs.principals] == ["ci"]


async def test_telemetry_may_be_missing_and_the_others_may_not(kubectl: Kubectl, servers: Servers) -> None:
    kubectl.leads_to(servers.address, SERVICES[:2])
    async with await AsyncClient.from_kubernetes("tests", timeout=5) as client:
        assert await client.models.list() == []
    kubectl.leads_to(servers.address, SERVICES[1:])
    with pytest.raises(NotFoundError, match="no service/enginehouse-optimizer in the namespace tests"):
        await AsyncClient.from_kubernetes("tests")
    assert kubectl.processes == []


@pytest.mark.parametrize(
    ("said", "kind", "expected"),
    [
        ("error: current-context must exist in order to minify", FailedPreconditionError, "KUBECONFIG"),
        ("The connection to the server localhost:8080 was refused", FailedPreconditionError, "KUBECONFIG"),
        ("Unable to connect to the server: i/o timeout", UnavailableError, "i/o timeout"),
    ],
)
def test_what_kubectl_says_is_told(kubectl: Kubectl, said: str, kind: type[EnginehouseError], expected: str) -> None:
    kubectl.leads(error=said)
    with pytest.raises(kind, match=expected):
        Client.from_kubernetes("tests")


def test_without_kubectl_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(FailedPreconditionError, match="kubectl is not on the PATH"):
        Client.from_kubernetes()
    for wrong in ("", "--all", "Upper", "a/b", "a.b"):
        with pytest.raises(InvalidArgumentError, match="no namespace"):
            Client.from_kubernetes(wrong)


def test_in_the_cluster_services_have_names() -> None:
    inside = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    found = find_cluster("ml", variables=inside)
    assert found.addresses.optimizer == "enginehouse-optimizer.ml.svc:8010"
    assert found.addresses.inference == "enginehouse-inference.ml.svc:8001"
    assert found.addresses.telemetry == "enginehouse-telemetry-aggregator.ml.svc:8021"
    assert found.names is None and found.forwards == ()
    assert find_cluster("ml", release="mine", variables=inside).addresses.optimizer == "mine-optimizer.ml.svc:8010"


def test_credentials_are_given_or_named_or_mounted(tmp_path: Path) -> None:
    assert cluster_credentials(None, None, {}, tmp_path) == cluster_credentials(None, None, {}, tmp_path / "absent")
    (tmp_path / "ca.crt").write_text("ca")
    (tmp_path / "token").write_text("t")
    mounted = cluster_credentials(None, None, {}, tmp_path)
    assert mounted.tls == TLS(ca=tmp_path / "ca.crt") and str(tmp_path / "token") in repr(mounted.token)
    variables = {"ENGINEHOUSE_CLIENT_CA": "/other.pem", "ENGINEHOUSE_CLIENT_TOKEN_FILE": "/other"}
    assert cluster_credentials(None, None, variables, tmp_path).tls == TLS(ca=Path("/other.pem"))
    given = TLS(server_name="x")
    assert cluster_credentials(given, None, variables, tmp_path).tls is given


def test_a_forked_child_leaves_the_port_forward_to_its_parent(
    kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl.leads(**{SERVICES[0]: 1})
    forward = PortForward(SERVICES[0], 8010, namespace="tests")
    with monkeypatch.context() as child:
        child.setattr(port_forward.os, "getpid", lambda: -1)
        forward.close()
    assert len(kubectl.processes) == 1
    forward.close()
    forward.close()
    assert kubectl.processes == []
