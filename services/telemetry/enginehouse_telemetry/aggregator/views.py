"""A node as one reader sees it: the wanted GPUs and fields of its newest sample."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from enginehouse.v1 import telemetry_cluster_pb2 as cluster_pb
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.aggregator.cluster import Node, NodeState
from enginehouse_telemetry.aggregator.filters import ClusterFilter
from enginehouse_telemetry.masks import ReadMask

_STATES = {
    NodeState.LIVE: cluster_pb.NODE_STATE_LIVE,
    NodeState.LATE: cluster_pb.NODE_STATE_LATE,
    NodeState.LOST: cluster_pb.NODE_STATE_LOST,
    NodeState.REMOVED: cluster_pb.NODE_STATE_REMOVED,
}


Nodes = RepeatedCompositeFieldContainer[cluster_pb.ClusterNode]


class View:
    """Makes messages of nodes for one reader.

    Args:
        name_of: a node's resource name.
    """

    def __init__(self, chosen: ClusterFilter, mask: ReadMask, name_of: Callable[[Node], str]) -> None:
        self._filter, self._mask, self._name_of = chosen, mask, name_of
        # Nodes that this reader was shown, where it wants some GPUs only: it is told when they have none any more.
        self._shown: set[str] = set()

    def add_to(self, nodes: Nodes, node: Node, skipped: int = 0) -> bool:
        """Add a node's message to a list of them; False when it has nothing that the reader wants."""
        if not self._filter.wants(node.id):
            return False
        sample = node.sample
        if self._filter.of_gpus:
            sample = self._only_wanted(node)
            if sample is None:
                return False
        message = nodes.add(
            name=self._name_of(node),
            state=_STATES[node.state],
            state_message=node.message,
            address=node.address,
            skipped=skipped,
        )
        if node.received_ns:
            received = message.received_time
            received.seconds, received.nanos = divmod(node.received_ns, 1_000_000_000)
        if sample is not None and node.state in (NodeState.LIVE, NodeState.LATE):
            message.sample.CopyFrom(self._mask.apply(sample))
        return True

    def _only_wanted(self, node: Node) -> pb.Sample | None:
        """The sample with the wanted GPUs; None when the node is none of the reader's business."""
        gpus = self._filter.gpus(node.sample) if node.sample is not None else []
        shown = node.id in self._shown
        if not gpus and not shown:
            return None
        if not gpus or node.state is NodeState.REMOVED:
            self._shown.discard(node.id)
        else:
            self._shown.add(node.id)
        part = pb.Sample()
        if node.sample is not None:
            part.CopyFrom(node.sample)
            del part.gpus[:]
            part.gpus.extend(gpus)
        return part
