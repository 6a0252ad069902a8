"""A namespace of a real cluster for each module; nothing of it stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from enginehouse.errors import EnginehouseError
from enginehouse.kubernetes.api import KubernetesApi

RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "app.kubernetes.io/part-of": "enginehouse",
}


@dataclass(frozen=True)
class Cluster:
    """The namespace, the GPU product of a node that offers GPUs (empty without one), and images that nodes have."""

    namespace: str
    gpu_product: str
    images: tuple[str, ...]

    def image(self, variable: str, name: str) -> str:
        """An image of ours: named by a variable, or on a node already; the test is skipped without one."""
        found = os.environ.get(variable) or next((image for image in self.images if name in image), "")
        if not found:
            pytest.skip(f"no node has an image {name}: load one, or name it in {variable}")
        return found


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    made = asyncio.run(_make(f"enginehouse-test-{uuid4().hex[:8]}"))
    yield made
    asyncio.run(_remove(made.namespace))


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[KubernetesApi]:
    async with await KubernetesApi.connect() as api:
        yield api


async def _make(namespace: str) -> Cluster:
    async with await KubernetesApi.connect() as api:
        try:
            nodes = (await api.get("/api/v1/nodes"))["items"]
            await api.post("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": RESTRICTED}})
        except EnginehouseError as error:
            pytest.skip(f"the cluster at {api.server} lets us make no namespace: {error.message}")
    offering = [node for node in nodes if int(node["status"].get("allocatable", {}).get("nvidia.com/gpu", 0))]
    products = [node["metadata"]["labels"].get("nvidia.com/gpu.product", "") for node in offering]
    images = [name for node in nodes for image in node["status"].get("images") or () for name in image.get("names", ())]
    return Cluster(namespace, next(filter(None, products), ""), tuple(images))


async def _remove(namespace: str) -> None:
    async with await KubernetesApi.connect() as api:
        await api.delete(f"/api/v1/namespaces/{namespace}")
