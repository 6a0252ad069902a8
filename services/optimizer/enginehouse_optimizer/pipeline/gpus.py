"""On which GPUs a request's engines are built: here, those of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from enginehouse.errors import FailedPreconditionError
from enginehouse_optimizer.pipeline.inputs import Inputs, Target
from enginehouse_optimizer.pipeline.machine import GPU, machine_facts


class Gpus(Protocol):
    """The GPUs that engines can be built on."""

    async def place(self, inputs: Inputs) -> Inputs:
        """The request with the GPU of each target.

        Raises:
            FailedPreconditionError: there is none like it.
        """

    async def versions(self, inputs: Inputs) -> Mapping[str, str]:
        """What of them a plan depends on beside what `machine_facts` has; nothing when that cannot be asked now."""


class LocalGpus:
    """This machine's: a target may name the product that is there."""

    def __init__(self, facts: Callable[[], Mapping[str, str]] = machine_facts) -> None:
        self._facts = facts

    async def place(self, inputs: Inputs) -> Inputs:
        return replace(inputs, targets=tuple(map(self.place_target, inputs.targets)))

    async def versions(self, inputs: Inputs) -> Mapping[str, str]:
        return {}

    def place_target(self, target: Target) -> Target:
        """Raises FailedPreconditionError when a target names another GPU than is here."""
        if not target.gpu_product:
            return target
        here = json.loads(self._facts()[GPU])
        if _label(target.gpu_product) not in map(_label, here):
            raise FailedPreconditionError(
                f"gpu_product {target.gpu_product!r} is not on this machine, where {target.backend} engines are built: "
                f"it has {', '.join(here) or 'no GPU'}. With ENGINEHOUSE_EXECUTOR=kubernetes, and an image for "
                f"{target.backend} in ENGINEHOUSE_WORKER_IMAGES, they are built where such a GPU is",
                details={"gpu_product": target.gpu_product, "gpu_products": ",".join(here)},
            )
        return replace(target, gpu_product="")  # the machine's own: its engines have one key, named or not


def _label(product: str) -> str:
    """A product as node labels have it, in one case."""
    return product.replace(" ", "-").casefold()
