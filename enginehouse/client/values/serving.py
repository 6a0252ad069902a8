"""The desired state of serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enginehouse.client.values.convert import duration, id_of, seconds_or_none, time_or_none
from enginehouse.errors import InvalidArgumentError
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
class PriorityQueue:
    """How requests of one priority level wait. What is 0, empty or None is as in the `Batching` that it is part of."""

    priority_level: int
    max_queue_size: int = 0
    queue_timeout_seconds: float | None = None
    timeout_action: str = ""
    allow_timeout_override: bool | None = None

    @classmethod
    def from_proto(cls, message: pb.PriorityQueue) -> PriorityQueue:
        return cls(
            priority_level=message.priority_level,
            max_queue_size=message.max_queue_size,
            queue_timeout_seconds=seconds_or_none(message, "queue_timeout"),
            timeout_action=_action_name(message.timeout_action),
            allow_timeout_override=_override(message),
        )

    def to_proto(self) -> pb.PriorityQueue:
        timeout = self.queue_timeout_seconds
        return pb.PriorityQueue(
            priority_level=self.priority_level,
            max_queue_size=self.max_queue_size,
            queue_timeout=None if timeout is None else duration(timeout),
            timeout_action=_action(self.timeout_action),
            allow_timeout_override=self.allow_timeout_override,
        )


@dataclass(frozen=True)
class Batching:
    """How requests wait, are put together into batches, and are answered.

    Attributes:
        max_batch_size: 0 is the engine's own maximum; 1 is no dynamic batching.
        max_queue_delay_seconds: how long the first request of a batch waits for others. 0: a batch is what queued
            while the instances were busy.
        preferred_batch_sizes: sizes that are sent at once when reached.
        max_queue_size: requests waiting, per version and priority level; more are refused. 0: 1024.
        queue_timeout_seconds: requests that wait longer meet `timeout_action`; None is no limit.
        timeout_action: "reject" (also when empty), or "delay": they leave after those whose time is not over.
        allow_timeout_override: whether a request may name a shorter time; None is yes.
        priority_levels: that requests may ask for, 1 the first to leave; 0: none.
        default_priority_level: of requests that ask for none; 0: the last.
        priority_queues: levels that wait by rules of their own.
        device_share: of the device's time beside other models, where its batches are limited; 0: 1.
        response_cache_bytes: of answers that each process keeps for each version to answer equal requests; 0: none.
    """

    max_batch_size: int = 0
    max_queue_delay_seconds: float = 0.0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    queue_timeout_seconds: float | None = None
    timeout_action: str = ""
    allow_timeout_override: bool | None = None
    priority_levels: int = 0
    default_priority_level: int = 0
    priority_queues: tuple[PriorityQueue, ...] = ()
    device_share: int = 0
    response_cache_bytes: int = 0

    @classmethod
    def from_proto(cls, message: pb.BatchingPolicy) -> Batching:
        return cls(
            max_batch_size=message.max_batch_size,
            max_queue_delay_seconds=seconds_or_none(message, "max_queue_delay") or 0.0,
            preferred_batch_sizes=tuple(message.preferred_batch_sizes),
            max_queue_size=message.max_queue_size,
            queue_timeout_seconds=seconds_or_none(message, "queue_timeout"),
            timeout_action=_action_name(message.timeout_action),
            allow_timeout_override=_override(message),
            priority_levels=message.priority_levels,
            default_priority_level=message.default_priority_level,
            priority_queues=tuple(map(PriorityQueue.from_proto, message.priority_queues)),
            device_share=message.device_share,
            response_cache_bytes=message.response_cache_bytes,
        )

    def to_proto(self) -> pb.BatchingPolicy:
        timeout = self.queue_timeout_seconds
        return pb.BatchingPolicy(
            max_batch_size=self.max_batch_size,
            max_queue_delay=duration(self.max_queue_delay_seconds),
            preferred_batch_sizes=list(self.preferred_batch_sizes),
            max_queue_size=self.max_queue_size,
            queue_timeout=None if timeout is None else duration(timeout),
            timeout_action=_action(self.timeout_action),
            allow_timeout_override=self.allow_timeout_override,
            priority_levels=self.priority_levels,
            default_priority_level=self.default_priority_level,
            priority_queues=[queue.to_proto() for queue in self.priority_queues],
            device_share=self.device_share,
            response_cache_bytes=self.response_cache_bytes,
        )


_ACTIONS = {"": pb.TIMEOUT_ACTION_UNSPECIFIED, "reject": pb.TIMEOUT_ACTION_REJECT, "delay": pb.TIMEOUT_ACTION_DELAY}


def _action(name: str) -> pb.TimeoutAction.ValueType:
    if name not in _ACTIONS:
        raise InvalidArgumentError(f"timeout_action is {name!r}: expected reject or delay")
    return _ACTIONS[name]


def _action_name(action: pb.TimeoutAction.ValueType) -> str:
    return next((name for name, known in _ACTIONS.items() if known == action), "")


def _override(message: pb.BatchingPolicy | pb.PriorityQueue) -> bool | None:
    return message.allow_timeout_override if message.HasField("allow_timeout_override") else None


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
