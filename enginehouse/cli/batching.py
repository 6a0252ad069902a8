"""The options of `enginehouse load` that say how requests wait, are batched, and are answered."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from enginehouse.client.values import Batching, PriorityQueue
from enginehouse.errors import InvalidArgumentError

MaxBatch = Annotated[int | None, typer.Option(min=0, help="0: the engine's own; 1: no batching.")]
MaxDelay = Annotated[float | None, typer.Option(min=0, help="How long a batch waits for more.")]
Prefer = Annotated[
    list[int] | None,
    typer.Option(min=0, help="A batch size that leaves at once; may be repeated. 0: the engine's own."),
]
MaxQueue = Annotated[int | None, typer.Option(min=0, help="Requests that may wait. 0: 1024.")]
QueueTimeout = Annotated[float | None, typer.Option(min=0, help="How long a request may wait. 0: without limit.")]
OnTimeout = Annotated[
    str | None, typer.Option(help="What becomes of one that waited longer: reject, or delay (behind the others).")
]
TimeoutOverride = Annotated[
    bool | None, typer.Option(help="Whether a request's own parameter `timeout` counts where it is shorter.")
]
Priorities = Annotated[int | None, typer.Option(min=0, help="Priority levels, 1 the first to leave. 0: none.")]
DefaultPriority = Annotated[int | None, typer.Option(min=0, help="Of requests that name none. 0: the last.")]
PriorityQueues = Annotated[
    list[str] | None,
    typer.Option(help="A level's own queue, LEVEL=SIZE[:TIMEOUT_MS[:reject|delay]]; may be repeated."),
]
Share = Annotated[int | None, typer.Option(min=0, help="Of the device's time, where its batches are limited. 0: 1.")]
CacheMb = Annotated[float | None, typer.Option(min=0, help="Megabytes of answers kept for equal requests. 0: none.")]

_QUEUE = re.compile(r"(\d+)=(\d+)(?::(\d+(?:\.\d+)?)(?::(reject|delay))?)?")


@dataclasses.dataclass(frozen=True)
class BatchingOptions:
    """What was given; None was not."""

    max_batch: int | None = None
    max_delay_ms: float | None = None
    prefer: Sequence[int] | None = None
    max_queue: int | None = None
    queue_timeout_ms: float | None = None
    on_timeout: str | None = None
    timeout_override: bool | None = None
    priorities: int | None = None
    default_priority: int | None = None
    priority_queue: Sequence[str] | None = None
    share: int | None = None
    cache_mb: float | None = None

    def changes(self) -> dict[str, Any]:
        """The fields of `Batching` that were given.

        Raises:
            InvalidArgumentError: one makes no sense.
        """
        if self.on_timeout not in (None, "reject", "delay"):
            raise InvalidArgumentError(f"--on-timeout {self.on_timeout!r} is not valid: expected reject or delay")
        given: dict[str, Any] = {
            "max_batch_size": self.max_batch,
            "max_queue_delay_seconds": _seconds(self.max_delay_ms),
            "preferred_batch_sizes": None if not self.prefer else tuple(n for n in self.prefer if n),
            "max_queue_size": self.max_queue,
            "timeout_action": self.on_timeout,
            "allow_timeout_override": self.timeout_override,
            "priority_levels": self.priorities,
            "default_priority_level": self.default_priority,
            "priority_queues": tuple(map(priority_queue, self.priority_queue)) if self.priority_queue else None,
            "device_share": self.share,
            "response_cache_bytes": None if self.cache_mb is None else round(self.cache_mb * 1e6),
        }
        if self.priorities == 0:  # without levels there is nothing that their settings could mean
            given |= {"default_priority_level": 0, "priority_queues": ()}
        changes = {field: value for field, value in given.items() if value is not None}
        if self.queue_timeout_ms is not None:
            changes["queue_timeout_seconds"] = _seconds(self.queue_timeout_ms) or None
        return changes

    def apply(self, batching: Batching) -> Batching:
        """The policy with what was given changed."""
        return dataclasses.replace(batching, **self.changes())


def priority_queue(text: str) -> PriorityQueue:
    """LEVEL=SIZE[:TIMEOUT_MS[:reject|delay]] as a queue.

    Raises:
        InvalidArgumentError: it is not that.
    """
    match = _QUEUE.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"--priority-queue {text!r} is not valid: expected LEVEL=SIZE[:TIMEOUT_MS[:reject|delay]], such as "
            "1=64:5:reject"
        )
    level, size, timeout, action = match.groups()
    return PriorityQueue(
        priority_level=int(level),
        max_queue_size=int(size),
        queue_timeout_seconds=_seconds(float(timeout)) or None if timeout else None,
        timeout_action=action or "",
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
