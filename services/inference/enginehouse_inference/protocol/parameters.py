"""Parameters of requests and tensors (`InferParameter`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginehouse.errors import InvalidArgumentError

# Of the largest number that a parameter can be; Python refuses to read very long ones.
_DIGITS = 20


def integer(parameters: Mapping[str, Any], key: str, what: str) -> int | None:
    """An integer parameter, None when it is absent.

    Raises:
        InvalidArgumentError: it is not a whole number from 0 on.
    """
    if key not in parameters:
        return None
    choice = parameters[key].WhichOneof("parameter_choice")
    value = getattr(parameters[key], choice) if choice else None
    if isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgumentError(f"{what}: parameter {key!r} is {value!r}: expected a whole number from 0 on")
    return value


def text(parameters: Mapping[str, Any], key: str, what: str) -> str | None:
    """A string parameter, None when it is absent.

    Raises:
        InvalidArgumentError: it is not a string.
    """
    if key not in parameters:
        return None
    if parameters[key].WhichOneof("parameter_choice") != "string_param":
        raise InvalidArgumentError(f"{what}: parameter {key!r} must be a string")
    return str(parameters[key].string_param)


def boolean(parameters: Mapping[str, Any], key: str) -> bool:
    """A boolean parameter; False when it is absent."""
    return key in parameters and bool(parameters[key].bool_param)
