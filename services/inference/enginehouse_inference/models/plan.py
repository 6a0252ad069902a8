"""What should be served of one model: a plan, from a serving configuration or from a load request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import serving_pb2
from enginehouse_inference.batching.policy import BatchPolicy


@dataclass(frozen=True)
class QueueDefaults:
    """What applies where a configuration is silent."""

    max_queue_size: int = 1024


@dataclass(frozen=True)
class Batching:
    """A batching policy as configured: 0 and empty mean the default."""

    max_batch_size: int = 0
    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    queue_timeout_ns: int | None = None

    def policy(self, batched: bool, engine_limit: int, defaults: QueueDefaults) -> BatchPolicy:
        """The policy for an engine.

        Args:
            engine_limit: the engine's largest batch; 0 without limit.
        """
        # 1 turns joining off; it does not forbid a client to send several rows that the engine takes at once.
        join = batched and self.max_batch_size != 1
        limits = [n for n in (engine_limit, self.max_batch_size if join else 0) if n > 0]
        largest = min(limits, default=_UNLIMITED) if batched else 1
        return BatchPolicy(
            max_batch_size=largest,
            join=join and largest > 1,
            max_queue_delay_ns=self.max_queue_delay_ns,
            preferred_batch_sizes=tuple(n for n in self.preferred_batch_sizes if n <= largest),
            max_queue_size=self.max_queue_size or defaults.max_queue_size,
            queue_timeout_ns=self.queue_timeout_ns,
        )


# For an engine that names no limit: what keeps one batch from taking the whole queue's memory at once.
_UNLIMITED = 1024


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
            max_queue_size=batching.max_queue_size,
            queue_timeout_ns=batching.queue_timeout.ToNanoseconds() if batching.HasField("queue_timeout") else None,
        ),
    )


def plan_from_load(name: str, text: str) -> ModelPlan:
    """The plan in the `config` parameter of a repository load request: JSON, its keys those of `_LOAD_KEYS`.

    Raises:
        InvalidArgumentError: naming the key, what came and what was expected.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"the load configuration of {name!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"the load configuration of {name!r} is {type(config).__name__}: expected an object")
    for key, value in config.items():
        if key not in _LOAD_KEYS:
            raise InvalidArgumentError(
                f"the load configuration of {name!r} has {key!r}: expected only {', '.join(_LOAD_KEYS)}"
            )
        if not _LOAD_KEYS[key](value):
            raise InvalidArgumentError(f"the load configuration of {name!r} has a bad {key}: {value!r}")
    if "engine_directory" not in config:
        raise InvalidArgumentError(f"the load configuration of {name!r} has no engine_directory: expected a path")
    options: Mapping[str, Any] = config.get("options", {})
    warmup = config.get("warmup_batch_sizes")
    timeout = config.get("queue_timeout_us")
    return ModelPlan(
        name=name,
        versions=(VersionPlan(config.get("version", 1), directory=Path(config["engine_directory"])),),
        loading=Loading(
            instances=config.get("instances", 1),
            warmup=None if warmup is None else tuple(warmup),
            options=tuple(sorted((str(k), str(v)) for k, v in options.items())),
        ),
        batching=Batching(
            max_batch_size=config.get("max_batch_size", 0),
            max_queue_delay_ns=config.get("max_queue_delay_us", 0) * 1000,
            preferred_batch_sizes=tuple(sorted(set(config.get("preferred_batch_sizes", ())))),
            max_queue_size=config.get("max_queue_size", 0),
            queue_timeout_ns=None if timeout is None else timeout * 1000,
        ),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_positive(value: object) -> bool:
    return _is_count(value) and value != 0


def _are_positive(value: object) -> bool:
    return isinstance(value, list) and all(_is_positive(item) for item in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_LOAD_KEYS = {
    "engine_directory": _is_text,
    "version": _is_positive,
    "instances": _is_positive,
    "max_batch_size": _is_count,
    "max_queue_delay_us": _is_count,
    "preferred_batch_sizes": _are_positive,
    "max_queue_size": _is_count,
    "queue_timeout_us": _is_positive,
    "warmup_batch_sizes": _are_positive,
    "options": _is_object,
}
