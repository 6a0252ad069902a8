"""Which GPUs the cluster has, and on which of them a request's engines are to be built."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from enginehouse.errors import EnginehouseError, FailedPreconditionError
from enginehouse.kubernetes.api import KubernetesApi, Object
from enginehouse_optimizer.kubernetes.template import GPU_PRODUCT
from enginehouse_optimizer.pipeline.backends import BACKENDS
from enginehouse_optimizer.pipeline.gpus import LocalGpus
from enginehouse_optimizer.pipeline.inputs import Inputs, Target
from enginehouse_optimizer.pipeline.machine import DRIVER

DRIVER_LABEL = "nvidia.com/cuda.driver-version.full"


@dataclass(frozen=True)
class GpuProduct:
    """A GPU product of the cluster: nodes that have it, those of them that take pods, and GPUs that pods may have."""

    name: str
    nodes: int
    open_nodes: int
    gpus: int
    driver: str


_log = structlog.get_logger("kubernetes")


class ClusterGpus:
    """The cluster's, for backends whose environments run there; this machine's for the others.

    Args:
        environments: worker environments that run in the cluster.
    """

    def __init__(self, environments: Collection[str]) -> None:
        self._environments = environments
        self._local = LocalGpus()
        self._api: KubernetesApi | None = None
        self._resource = ""

    def start(self, api: KubernetesApi, resource: str) -> None:
        """Args: `resource` is the extended resource that a GPU is asked for by."""
        self._api, self._resource = api, resource

    async def place(self, inputs: Inputs) -> Inputs:
        if not any(self._wants_products(target) for target in inputs.targets):
            return await self._local.place(inputs)
        products = await self._products()
        targets = [
            place_target(target, products) if self._is_remote(target) else self._local.place_target(target)
            for target in inputs.targets
        ]
        return replace(inputs, targets=tuple(targets))

    async def versions(self, inputs: Inputs) -> Mapping[str, str]:
        if not any(target.gpu_product for target in inputs.targets):
            return {}
        try:
            return {f"{DRIVER} {product.name}": product.driver for product in await self._products()}
        except EnginehouseError as error:  # what was measured for another driver is a help all the same
            _log.warning("the nodes' drivers are not known", error=error.message)
            return {}

    def _is_remote(self, target: Target) -> bool:
        return BACKENDS[target.backend].environment in self._environments

    def _wants_products(self, target: Target) -> bool:
        needed = bool(target.gpu_product) or BACKENDS[target.backend].device == "gpu"
        return needed and self._is_remote(target)

    async def _products(self) -> list[GpuProduct]:
        assert self._api is not None, "started with the service"
        listed = await self._api.get("/api/v1/nodes", labelSelector=GPU_PRODUCT)
        return products_of(listed.get("items") or (), self._resource)


def products_of(nodes: Iterable[Object], resource: str) -> list[GpuProduct]:
    """The products that nodes are labelled with, by name; GPUs are counted by an extended resource."""
    found: dict[str, list[Object]] = {}
    for node in nodes:
        found.setdefault(str(node["metadata"]["labels"][GPU_PRODUCT]), []).append(node)
    return [_product(name, found[name], resource) for name in sorted(found)]


def _product(name: str, nodes: list[Object], resource: str) -> GpuProduct:
    drivers = {str(node["metadata"]["labels"].get(DRIVER_LABEL, "")) for node in nodes}
    return GpuProduct(
        name,
        nodes=len(nodes),
        open_nodes=sum(not node.get("spec", {}).get("unschedulable") for node in nodes),
        gpus=sum(int(node.get("status", {}).get("allocatable", {}).get(resource, 0)) for node in nodes),
        driver=drivers.pop() if len(drivers) == 1 else "",
    )


def place_target(target: Target, products: list[GpuProduct]) -> Target:
    """A target with the product that it is built on; one that needs no GPU and names none as it is.

    Raises:
        FailedPreconditionError: no node has what it names, or it names none and there are several.
    """
    if not target.gpu_product:
        if BACKENDS[target.backend].device != "gpu":
            return target
        if len(products) == 1:
            return place_target(replace(target, gpu_product=products[0].name), products)
        raise FailedPreconditionError(
            f"a {target.backend} engine is built on one type of GPU, and "
            + (
                f"the cluster has several: name one in gpu_product ({describe(products)})"
                if products
                else f"no node of the cluster has the label {GPU_PRODUCT}: install NVIDIA's GPU feature discovery, or "
                "label the nodes"
            ),
            details={"gpu_products": ",".join(product.name for product in products)},
        )
    found = next((product for product in products if product.name == target.gpu_product), None)
    if found is None:
        raise FailedPreconditionError(
            f"no node of the cluster has a GPU {target.gpu_product!r}: it has {describe(products)}",
            details={"gpu_product": target.gpu_product, "gpu_products": ",".join(p.name for p in products)},
        )
    if not found.gpus:
        raise FailedPreconditionError(
            f"the nodes with a GPU {target.gpu_product!r} offer pods none of it: look for NVIDIA's device plugin there "
            f"({describe(products)})",
            details={"gpu_product": target.gpu_product},
        )
    return target


def describe(products: list[GpuProduct]) -> str:
    """Such as "NVIDIA-H200 (4 GPUs on 1 node)"."""
    if not products:
        return f"no node with the label {GPU_PRODUCT}"
    return ", ".join(f"{p.name} ({_many(p.gpus, 'GPU')} on {_many(p.nodes, 'node')}{_shut(p)})" for p in products)


def _shut(product: GpuProduct) -> str:
    shut = product.nodes - product.open_nodes
    return f", {shut} cordoned" if shut else ""


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
