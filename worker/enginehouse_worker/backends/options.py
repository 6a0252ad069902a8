"""Backend options. They arrive as strings (from a request) or as JSON values (from `engine.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.params import close_matches


def check_known(options: Mapping[str, Any], known: Sequence[str], backend: str) -> None:
    """Raise INVALID_ARGUMENT for a name the backend does not know."""
    for name in options:
        if name not in known:
            near = close_matches(name, known)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise WorkerError(
                "INVALID_ARGUMENT", f"backend {backend!r} has no option {name!r} (known: {', '.join(known)}){hint}"
            )


def integer(options: Mapping[str, Any], name: str, default: int, minimum: int, maximum: int) -> int:
    """An integer option.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is no integer in the range.
    """
    value = options.get(name, default)
    try:
        number = int(value) if not isinstance(value, (bool, float)) else minimum - 1
    except (TypeError, ValueError):
        number = minimum - 1
    if not minimum <= number <= maximum:
        raise WorkerError(
            "INVALID_ARGUMENT", f"option {name!r} is {value!r}; expected an integer from {minimum} to {maximum}"
        )
    return number


def choice(options: Mapping[str, Any], name: str, default: str, choices: Sequence[str]) -> str:
    """An option with a fixed set of values.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is none of them.
    """
    value = str(options.get(name, default)).lower()
    if value not in choices:
        raise WorkerError("INVALID_ARGUMENT", f"option {name!r} is {value!r}; expected one of {', '.join(choices)}")
    return value


def flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """A yes or no: a JSON boolean, or "true" or "false".

    Raises:
        WorkerError: INVALID_ARGUMENT when it is neither.
    """
    return choice(options, name, str(default), ("true", "false")) == "true"
