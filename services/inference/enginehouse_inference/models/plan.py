"""What should be served of one model: a plan, from a serving configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.v1 import serving_pb2
from enginehouse_inference.batching.policy import TimeoutAction
from enginehouse_inference.models.batching import Batching, QueueDefaults, Queueing

__all__ = ["Batching", "Loading", "ModelPlan", "QueueDefaults", "VersionPlan", "plan_from_config"]


@dataclass(frozen=True)
class VersionPlan:
    """One version: the name of a published engine, or a local directory."""

    version: int
    engine: str = ""
    directory: Path | None = None


@dataclass(frozen=True)
class Loading:
    """How an engine is loaded. Versions whose engine and loading are equal need not be loaded again."""

    instances: int = 1
    # None: 1 and the maximum batch size.
    warmup: tuple[int, ...] | None = None
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """What should be served under a name."""

    name: str
    versions: tuple[VersionPlan, ...]
    loading: Loading = field(default_factory=Loading)
    batching: Batching = field(default_factory=Batching)


def plan_from_config(config: serving_pb2.ServingConfig) -> ModelPlan:
    """The plan that a serving configuration describes."""
    versions = sorted(config.versions, key=lambda v: -v.version)[: config.latest_versions or 1]
    batching = config.batching
    return ModelPlan(
        name=config.name.rsplit("/", 1)[-1],
        versions=tuple(VersionPlan(v.version, engine=v.engine) for v in versions),
        loading=Loading(
            instances=config.instances or 1,
            warmup=tuple(config.warmup_batch_sizes) or None,
            options=tuple(sorted(config.options.items())),
        ),
        batching=Batching(
            max_batch_size=batching.max_batch_size,
            max_queue_delay_ns=batching.max_queue_delay.ToNanoseconds(),
            preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_sizes))),
            queue=_queueing(batching),
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level,
            priority_queues=tuple(
                sorted(((q.priority_level, _queueing(q)) for q in batching.priority_queues), key=lambda q: q[0])
            ),
            device_share=batching.device_share or 1,
            response_cache_bytes=batching.response_cache_bytes,
        ),
    )


_ACTIONS = {
    serving_pb2.TIMEOUT_ACTION_REJECT: TimeoutAction.REJECT,
    serving_pb2.TIMEOUT_ACTION_DELAY: TimeoutAction.DELAY,
}


def _queueing(policy: serving_pb2.BatchingPolicy | serving_pb2.PriorityQueue) -> Queueing:
    return Queueing(
        max_queue_size=policy.max_queue_size,
        queue_timeout_ns=policy.queue_timeout.ToNanoseconds() if policy.HasField("queue_timeout") else None,
        timeout_action=_ACTIONS.get(policy.timeout_action),
        allow_timeout_override=policy.allow_timeout_override if policy.HasField("allow_timeout_override") else None,
    )
