"""Which nodes, and which of their GPUs, a reader wants."""

from __future__ import annotations

import re
from collections.abc import Iterable

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import telemetry_cluster_pb2 as cluster_pb
from enginehouse.v1 import telemetry_pb2 as pb

# More make a request slower than the samples that it asks for.
MAX_PATTERNS = 1000


class ClusterFilter:
    """A filter that was checked."""

    def __init__(self, asked: cluster_pb.ClusterFilter) -> None:
        """
        Raises:
            InvalidArgumentError: a pod's name has no namespace, or a list is too long.
        """
        for field in ("nodes", "pods", "products"):
            if len(getattr(asked, field)) > MAX_PATTERNS:
                raise InvalidArgumentError(
                    f"filter.{field} has {len(getattr(asked, field))} entries: expected {MAX_PATTERNS} at most; "
                    '"*" stands for any characters'
                )
        for pod in asked.pods:
            if "/" not in pod:
                raise InvalidArgumentError(
                    f'filter.pods {pod!r} is not valid: expected "namespace/pod", such as "team-a/*" or "*/{pod}"'
                )
        self._nodes, self._pods, self._products = (
            _pattern(asked.nodes),
            _pattern(asked.pods),
            _pattern(asked.products),
        )

    @property
    def of_gpus(self) -> bool:
        """Whether it chooses among a node's GPUs, so that nodes without any such are left out."""
        return self._pods is not None or self._products is not None

    def wants(self, node_id: str) -> bool:
        """Whether a node may be wanted, by its id."""
        return self._nodes is None or self._nodes.match(node_id) is not None

    def gpus(self, sample: pb.Sample) -> list[pb.GpuSample]:
        """The wanted GPUs of a node."""
        if not self.of_gpus:
            return list(sample.gpus)
        return [gpu for gpu in sample.gpus if self._wants_gpu(gpu)]

    def _wants_gpu(self, gpu: pb.GpuSample) -> bool:
        if self._products is not None and not self._products.match(gpu.product):
            return False
        pods = self._pods
        return pods is None or any(pods.match(f"{held.namespace}/{held.pod}") for held in gpu.allocations)


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """What matches one of the names, in which "*" stands for any characters; None when all do."""
    parts = [".*".join(re.escape(part) for part in name.split("*")) for name in names]
    return re.compile(f"(?:{'|'.join(parts)})\\Z", re.DOTALL) if parts else None
