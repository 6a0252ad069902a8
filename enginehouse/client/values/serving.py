"""The desired state of serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enginehouse.client.values.convert import duration, id_of, seconds_or_none, time_or_none
from enginehouse.v1 import serving_pb2 as pb


@dataclass(frozen=True)
class ServedVersion:
    """A version of a served model and the engine that it is; `alias` is the one that it follows, if it does.

    When the alias moves, the server puts the version after the highest in the place of this one.
    """

    version: int
    engine: str
    alias: str = ""


@dataclass(frozen=True)
class Batching:
    """How requests are put together into batches.

    Attributes:
        max_batch_size: 0 is the engine's own maximum; 1 is no dynamic batching.
        max_queue_delay_seconds: how long the first request of a batch waits for others. 0: a batch is what queued
            while the instances were busy.
        preferred_batch_sizes: sizes that are sent at once when reached.
        max_queue_size: requests waiting, per version; more are refused. 0: 1024.
        queue_timeout_seconds: requests that wait longer are refused; None is no limit.
    """

    max_batch_size: int = 0
    max_queue_delay_seconds: float = 0.0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    queue_timeout_seconds: float | None = None

    @classmethod
    def from_proto(cls, message: pb.BatchingPolicy) -> Batching:
        return cls(
            max_batch_size=message.max_batch_size,
            max_queue_delay_seconds=seconds_or_none(message, "max_queue_delay") or 0.0,
            preferred_batch_sizes=tuple(message.preferred_batch_sizes),
            max_queue_size=message.max_queue_size,
            queue_timeout_seconds=seconds_or_none(message, "queue_timeout"),
        )

    def to_proto(self) -> pb.BatchingPolicy:
        timeout = self.queue_timeout_seconds
        return pb.BatchingPolicy(
            max_batch_size=self.max_batch_size,
            max_queue_delay=duration(self.max_queue_delay_seconds),
            preferred_batch_sizes=list(self.preferred_batch_sizes),
            max_queue_size=self.max_queue_size,
            queue_timeout=None if timeout is None else duration(timeout),
        )


@dataclass(frozen=True)
class ServingConfig:
    """Which engines every inference process serves under a model name, and how."""

    name: str
    versions: tuple[ServedVersion, ...] = ()
    latest_versions: int = 1
    instances: int = 1
    batching: Batching = Batching()
    warmup_batch_sizes: tuple[int, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    etag: str = ""
    generation: int = 0
    update_time: datetime | None = None

    @property
    def id(self) -> str:
        """The model name that inference clients use."""
        return id_of(self.name)

    @property
    def newest(self) -> ServedVersion | None:
        """The highest version; None when there is none."""
        return max(self.versions, key=lambda v: v.version, default=None)

    @property
    def served(self) -> tuple[ServedVersion, ...]:
        """The versions that are served: the highest `latest_versions`, in rising order."""
        ordered = sorted(self.versions, key=lambda v: v.version)
        return tuple(ordered[-max(1, self.latest_versions) :])

    @classmethod
    def from_proto(cls, message: pb.ServingConfig) -> ServingConfig:
        return cls(
            name=message.name,
            versions=tuple(ServedVersion(v.version, v.engine, v.alias) for v in message.versions),
            latest_versions=message.latest_versions or 1,
            instances=message.instances or 1,
            batching=Batching.from_proto(message.batching),
            warmup_batch_sizes=tuple(message.warmup_batch_sizes),
            options=dict(message.options),
            etag=message.etag,
            generation=message.generation,
            update_time=time_or_none(message, "update_time"),
        )

    def to_proto(self) -> pb.ServingConfig:
        return pb.ServingConfig(
            name=self.name,
            versions=[pb.ServedVersion(version=v.version, engine=v.engine, alias=v.alias) for v in self.versions],
            latest_versions=self.latest_versions,
            instances=self.instances,
            batching=self.batching.to_proto(),
            warmup_batch_sizes=list(self.warmup_batch_sizes),
            options=dict(self.options),
            etag=self.etag,
        )
