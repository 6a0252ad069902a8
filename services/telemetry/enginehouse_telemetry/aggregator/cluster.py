"""What is known of the cluster: the newest sample of every node, and whether it is live. Lives on the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import structlog

from enginehouse.v1 import telemetry_pb2 as pb

_log = structlog.get_logger("cluster")


class NodeState(Enum):
    """The names are those of `NodeState` in `telemetry_cluster.proto`."""

    LIVE = "live"
    LATE = "late"
    LOST = "lost"
    REMOVED = "removed"


@dataclass
class Node:
    """A node.

    Attributes:
        id: its name in the cluster.
        ordinal: rises with every node that is met; what pages go by.
        heard: when its newest sample came (when it was met, before the first), seconds of the monotonic clock.
        received_ns: the same in Unix nanoseconds; 0 before the first.
        size: bytes of its newest sample.
        problem: why no samples come, as far as the connection to its agent tells.
    """

    id: str
    ordinal: int
    heard: float
    state: NodeState = NodeState.LATE
    message: str = "no sample yet"
    sample: pb.Sample | None = None
    received_ns: int = 0
    size: int = 0
    address: str = ""
    problem: str = ""


# Told of every new sample and every change of state, with the time on the monotonic clock.
OnChange = Callable[[Node, float], None]


class Cluster:
    """All nodes. Memory is bounded: one sample a node, and `max_nodes` of them.

    Args:
        parent: `projects/{project}`.
        late, lost: seconds without a sample after which a node is late, and lost.
    """

    def __init__(
        self,
        parent: str,
        *,
        late: float,
        lost: float,
        max_nodes: int,
        on_change: OnChange,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._prefix = f"{parent}/nodes/"
        self._late, self._lost, self._max_nodes = late, lost, max_nodes
        self._on_change, self._clock, self._wall_ns = on_change, clock, wall_ns
        self._nodes: dict[str, Node] = {}
        self._met = 0
        self.bytes = 0
        # Samples of nodes over `max_nodes`, or of another project.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> list[Node]:
        """Those that there are, in the order in which they were met."""
        return list(self._nodes.values())

    def after(self, ordinal: int) -> Iterator[Node]:
        """The nodes with a greater ordinal."""
        return (node for node in self.nodes() if node.ordinal > ordinal)

    def name_of(self, node: Node) -> str:
        """A node's resource name."""
        return self._prefix + node.id

    def meet(self, node_id: str, address: str = "") -> Node | None:
        """The node of that id, new where it is not known; None when there are too many."""
        node = self._nodes.get(node_id)
        if node is not None:
            return node
        if len(self._nodes) >= self._max_nodes:
            return None
        self._met += 1
        node = self._nodes[node_id] = Node(node_id, self._met, self._clock(), address=address)
        self._on_change(node, node.heard)
        return node

    def take(self, sample: pb.Sample, size: int, address: str) -> Node | None:
        """Keep a node's new sample, which took `size` bytes; None when it is refused."""
        node = self.meet(sample.node[len(self._prefix) :]) if sample.node.startswith(self._prefix) else None
        if node is None:
            self.refused += 1
            return None
        now = self._clock()
        self.bytes += size - node.size
        if node.state is not NodeState.LIVE:
            if node.state is NodeState.LOST:
                _log.info("a node is back", node=node.id)
            node.state, node.message = NodeState.LIVE, ""
        node.sample, node.size, node.address, node.problem = sample, size, address, ""
        node.heard, node.received_ns = now, self._wall_ns()
        self._on_change(node, now)
        return node

    def sweep(self, listed: Iterable[str], slack: float = 0.0) -> None:
        """Mark nodes that are late or lost, and forget the lost ones that are not among the listed ids.

        Args:
            slack: seconds that samples may take longer because we read them later.
        """
        now = self._clock()
        kept = frozenset(listed)
        for node in self.nodes():
            silent = now - node.heard
            if silent <= self._late + slack:
                continue
            state = NodeState.LOST if silent > self._lost + slack else NodeState.LATE
            if state is NodeState.LOST and node.id not in kept:
                state = NodeState.REMOVED
            message = self._why(node, silent)
            if state is not node.state or (node.problem and node.problem not in node.message):
                if state is not node.state and state is not NodeState.LATE:
                    _log.warning("a node is lost" if state is NodeState.LOST else "a node is gone", node=node.id)
                node.state, node.message = state, message
                self._on_change(node, now)
            if state is NodeState.REMOVED:
                self.bytes -= node.size
                del self._nodes[node.id]

    def _why(self, node: Node, silent: float) -> str:
        since = "no sample yet" if node.sample is None else f"no sample for {silent:.0f} s"
        return f"{since}: {node.problem}" if node.problem else since
