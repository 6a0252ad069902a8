"""A node of a cluster, as the telemetry aggregator sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from enginehouse.client.values.convert import enum_name, id_of, time_or_none
from enginehouse.client.values.telemetry import Sample
from enginehouse.v1 import telemetry_cluster_pb2 as pb


@dataclass(frozen=True)
class ClusterNode:
    """A node and its newest sample.

    Attributes:
        name: `projects/{project}/nodes/{node}`.
        state: "live"; "late" when samples that should have come have not; "lost" when there was none for long;
            "removed" when it is lost and gone from the cluster, which is said once.
        state_message: why it is late or lost.
        sample: None when it is lost or removed. Its `skipped` counts those that this stream left out before it.
        received: when the sample came, by the aggregator's clock.
        address: where its agent answers.
    """

    name: str
    state: str
    state_message: str = ""
    sample: Sample | None = None
    received: datetime | None = None
    address: str = ""

    @property
    def id(self) -> str:
        """The node's name in the cluster."""
        return id_of(self.name)

    @classmethod
    def from_proto(cls, message: pb.ClusterNode) -> ClusterNode:
        return cls(
            name=message.name,
            state=enum_name(pb.NodeState, message.state, "NODE_STATE_"),
            state_message=message.state_message,
            sample=Sample.from_proto(message.sample, message.skipped) if message.HasField("sample") else None,
            received=time_or_none(message, "received_time"),
            address=message.address,
        )
