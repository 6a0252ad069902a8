"""How a model's requests wait and are batched, as configured: what is silent means the default."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse_inference.batching.policy import BatchPolicy, QueuePolicy, TimeoutAction

# For an engine that names no limit: what keeps one batch from taking the whole queue's memory at once.
_UNLIMITED = 1024


@dataclass(frozen=True)
class QueueDefaults:
    """What applies where a configuration is silent."""

    max_queue_size: int = 1024


@dataclass(frozen=True)
class Queueing:
    """How requests wait: 0 and None mean what applies otherwise. Times in nanoseconds."""

    max_queue_size: int = 0
    queue_timeout_ns: int | None = None
    timeout_action: TimeoutAction | None = None
    allow_timeout_override: bool | None = None

    def policy(self, otherwise: QueuePolicy) -> QueuePolicy:
        """The policy, where it is silent that of `otherwise`."""
        action, override = self.timeout_action, self.allow_timeout_override
        return QueuePolicy(
            max_queue_size=self.max_queue_size or otherwise.max_queue_size,
            queue_timeout_ns=otherwise.queue_timeout_ns if self.queue_timeout_ns is None else self.queue_timeout_ns,
            timeout_action=otherwise.timeout_action if action is None else action,
            allow_timeout_override=otherwise.allow_timeout_override if override is None else override,
        )


@dataclass(frozen=True)
class Batching:
    """A batching policy as configured: 0 and empty mean the default.

    Args:
        priority_levels: that requests may ask for, 1 first; 0: none.
        default_priority_level: of requests that ask for none; 0: the last.
        priority_queues: levels that wait by rules of their own.
        device_share: of the device's time beside other models.
        response_cache_bytes: of answers that are kept for each version, to answer equal requests; 0: none.
    """

    max_batch_size: int = 0
    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    queue: Queueing = Queueing()
    priority_levels: int = 0
    default_priority_level: int = 0
    priority_queues: tuple[tuple[int, Queueing], ...] = ()
    device_share: int = 1
    response_cache_bytes: int = 0

    def policy(self, batched: bool, engine_limit: int, defaults: QueueDefaults, optimal: int = 0) -> BatchPolicy:
        """The policy for an engine.

        Args:
            engine_limit: the engine's largest batch; 0 without limit.
            optimal: the batch that the engine was optimized for, preferred where the configuration prefers none and
                lets batches wait; 0 when it does not say.
        """
        # 1 turns joining off; it does not forbid a client to send several rows that the engine takes at once.
        join = batched and self.max_batch_size != 1
        limits = [n for n in (engine_limit, self.max_batch_size if join else 0) if n > 0]
        largest = min(limits, default=_UNLIMITED) if batched else 1
        preferred = self.preferred_batch_sizes
        if not preferred and self.max_queue_delay_ns and optimal > 1:
            preferred = (optimal,)
        base = self.queue.policy(QueuePolicy(max_queue_size=defaults.max_queue_size))
        own = dict(self.priority_queues)
        levels = range(1, self.priority_levels + 1)
        return BatchPolicy(
            max_batch_size=largest,
            join=join and largest > 1,
            max_queue_delay_ns=self.max_queue_delay_ns,
            preferred_batch_sizes=tuple(n for n in preferred if n <= largest),
            queue=base,
            levels=tuple(own.get(level, Queueing()).policy(base) for level in levels),
            default_level=self.default_priority_level or max(self.priority_levels, 1),
        )
