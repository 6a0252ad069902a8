"""The `config` parameter of a repository load request: JSON, its keys those of `_KEYS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enginehouse.errors import InvalidArgumentError
from enginehouse_inference.batching.policy import TimeoutAction
from enginehouse_inference.models.batching import Batching, Queueing
from enginehouse_inference.models.plan import Loading, ModelPlan, VersionPlan


def plan_from_load(name: str, text: str) -> ModelPlan:
    """The plan that a load request describes.

    Raises:
        InvalidArgumentError: naming the key, what came and what was expected.
    """
    what = f"the load configuration of {name!r}"
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{what} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{what} is {type(config).__name__}: expected an object")
    _check(config, _KEYS, what)
    if "engine_directory" not in config:
        raise InvalidArgumentError(f"{what} has no engine_directory: expected a path")
    levels, default = config.get("priority_levels", 0), config.get("default_priority_level", 0)
    queues: Mapping[str, Any] = config.get("priority_queues", {})
    for level, queue in queues.items():
        _check(queue, _QUEUE_KEYS, f"{what}, priority_queues {level},")
    if beyond := [n for n in (default, *map(int, queues)) if n > levels]:
        raise InvalidArgumentError(f"{what} names priority {beyond[0]}: expected at most {levels} (priority_levels)")
    options: Mapping[str, Any] = config.get("options", {})
    warmup = config.get("warmup_batch_sizes")
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
            queue=_queueing(config),
            priority_levels=levels,
            default_priority_level=default,
            priority_queues=tuple((int(level), _queueing(queues[level])) for level in sorted(queues, key=int)),
            device_share=config.get("device_share", 1),
            response_cache_bytes=config.get("response_cache_bytes", 0),
        ),
    )


def _queueing(config: Mapping[str, Any]) -> Queueing:
    timeout, action = config.get("queue_timeout_us"), config.get("timeout_action")
    return Queueing(
        max_queue_size=config.get("max_queue_size", 0),
        queue_timeout_ns=None if timeout is None else timeout * 1000,
        timeout_action=None if action is None else TimeoutAction(action),
        allow_timeout_override=config.get("allow_timeout_override"),
    )


def _check(config: Mapping[str, Any], keys: Mapping[str, Callable[[object], bool]], what: str) -> None:
    for key, value in config.items():
        if key not in keys:
            raise InvalidArgumentError(f"{what} has {key!r}: expected only {', '.join(keys)}")
        if not keys[key](value):
            raise InvalidArgumentError(f"{what} has a bad {key}: {value!r}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_positive(value: object) -> bool:
    return _is_count(value) and value != 0


def _are_positive(value: object) -> bool:
    return isinstance(value, list) and all(_is_positive(item) for item in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def _is_level(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PRIORITY_LEVELS


def _is_action(value: object) -> bool:
    return value in [action.value for action in TimeoutAction]


def _are_queues(value: object) -> bool:
    return isinstance(value, dict) and all(
        key.isascii() and key.isdecimal() and 1 <= int(key) <= MAX_PRIORITY_LEVELS and isinstance(queue, dict)
        for key, queue in value.items()
    )


# As in the optimizer's check of serving configurations.
MAX_PRIORITY_LEVELS = 100
_QUEUE_KEYS: Mapping[str, Callable[[object], bool]] = {
    "max_queue_size": _is_count,
    "queue_timeout_us": _is_positive,
    "timeout_action": _is_action,
    "allow_timeout_override": _is_boolean,
}
_KEYS: Mapping[str, Callable[[object], bool]] = {
    "engine_directory": _is_text,
    "version": _is_positive,
    "instances": _is_positive,
    "max_batch_size": _is_count,
    "max_queue_delay_us": _is_count,
    "preferred_batch_sizes": _are_positive,
    **_QUEUE_KEYS,
    "priority_levels": _is_level,
    "default_priority_level": _is_level,
    "priority_queues": _are_queues,
    "warmup_batch_sizes": _are_positive,
    "options": _is_object,
    "response_cache_bytes": _is_count,
    "device_share": _is_positive,
}
