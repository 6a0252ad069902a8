"""Service account tokens of a real cluster, shown to a server of ours that asks its API server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from enginehouse.errors import EnginehouseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from enginehouse.kubernetes.api import KubernetesApi

sys.path.append(str(Path(__file__).parents[2] / "unit" / "rpc"))

from guarded_server import guarded, refused

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROLES = 'bindings: [{{roles: [read], principals: ["system:serviceaccount:{}:web"]}}]'
# What a deleted account's token may still be worth, and some time for a slow cluster.
FORGOTTEN_SECONDS = 120


async def make_account(api: KubernetesApi, namespace: str, name: str) -> str:
    """Make a service account; returns its path."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    await api.post(path, {"metadata": {"name": name}})
    return f"{path}/{name}"


async def token_of(api: KubernetesApi, account: str, *audiences: str) -> str:
    spec = {"expirationSeconds": 600, **({"audiences": list(audiences)} if audiences else {})}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str((await api.post(f"{account}/token", body))["status"]["token"])


@pytest.fixture
async def reviewing(api: KubernetesApi, cluster: Cluster, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Settings of a server whose own account may ask whose a token is."""
    reviewer = await make_account(api, cluster.namespace, "reviewer")
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}
    subject = {"kind": "ServiceAccount", "name": "reviewer", "namespace": cluster.namespace}
    binding = {"metadata": {"name": cluster.namespace}, "roleRef": role, "subjects": [subject]}
    try:
        await api.post(bindings, binding)
    except EnginehouseError as error:
        pytest.skip(f"the cluster lets us bind no role: {error.message}")
    try:
        (tmp_path / "own-token").write_text(await token_of(api, reviewer))
        (tmp_path / "ca.crt").write_text(await root_ca(api, cluster.namespace))
        (tmp_path / "roles.yaml").write_text(ROLES.format(cluster.namespace))
        yield {
            "auth": "kubernetes",
            "auth_roles_file": tmp_path / "roles.yaml",
            "auth_kubernetes_url": api.server,
            "auth_kubernetes_token_file": tmp_path / "own-token",
            "auth_kubernetes_ca": tmp_path / "ca.crt",
        }
    finally:
        await api.delete(f"{bindings}/{cluster.namespace}")


async def root_ca(api: KubernetesApi, namespace: str) -> str:
    """The API server's CA, which every namespace is given soon after it is made."""
    for _ in range(100):
        try:
            found = await api.get(f"/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt")
            return str(found["data"]["ca.crt"])
        except NotFoundError:
            await asyncio.sleep(0.1)
    pytest.skip("the namespace has no kube-root-ca.crt")


async def test_accounts_of_the_cluster_call_a_server(
    api: KubernetesApi, cluster: Cluster, reviewing: dict[str, Any]
) -> None:
    web = await make_account(api, cluster.namespace, "web")
    other = await make_account(api, cluster.namespace, "other")
    token = await token_of(api, web, "enginehouse")
    async with guarded(reviewing) as it:
        assert (await it.find(token)).complete
        assert it.blobs.principals[0].name == f"system:serviceaccount:{cluster.namespace}:web"
        assert isinstance(await refused(it.write(token)), PermissionDeniedError)
        stranger = await token_of(api, other, "enginehouse")
        assert isinstance(await refused(it.find(stranger)), PermissionDeniedError)
        for bad in (await token_of(api, web), await token_of(api, web, "elsewhere"), token[:-8] + "AAAAAAAA"):
            assert isinstance(await refused(it.find(bad)), UnauthenticatedError)
        await api.delete(web)
        for _ in range(FORGOTTEN_SECONDS):
            try:
                await it.find(token)
            except Exception:
                break
            await asyncio.sleep(1)
        assert isinstance(await refused(it.find(token)), UnauthenticatedError)
