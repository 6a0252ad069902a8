"""Typed reading of a stage's parameters, with errors that say what was wrong and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from enginehouse_worker.errors import WorkerError


def close_matches(name: str, known: Iterable[str], count: int = 5) -> list[str]:
    """The known names nearest to a mistyped one, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


class Params:
    """A stage's parameters.

    Every method raises WorkerError INVALID_ARGUMENT when the value is not of the expected kind; so does the constructor
    when there is a parameter that is not in `known`.
    """

    def __init__(self, values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        self._values = values
        self._where = where
        for name in values:
            if name not in known:
                near = close_matches(name, known)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                expected = ", ".join(known) if known else "none"
                raise WorkerError("INVALID_ARGUMENT", f"{where}: unknown parameter {name!r} (known: {expected}){hint}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _wrong(self, name: str, expected: str) -> WorkerError:
        return WorkerError(
            "INVALID_ARGUMENT", f"{self._where}: parameter {name!r} is {self._values.get(name)!r}; expected {expected}"
        )

    def require(self, name: str) -> None:
        """Raise unless the parameter is there."""
        if name not in self._values:
            raise WorkerError("INVALID_ARGUMENT", f"{self._where}: parameter {name!r} is missing")

    def text(self, name: str, default: str, choices: Sequence[str] = ()) -> str:
        value = self._values.get(name, default)
        expected = "one of " + ", ".join(choices) if choices else "a string"
        if not isinstance(value, str) or (choices and value not in choices):
            raise self._wrong(name, expected)
        return value

    def integer(self, name: str, default: int, minimum: int, maximum: int = 2**31 - 1) -> int:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self._wrong(name, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, name: str, default: float, minimum: float, maximum: float) -> float:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(name, f"a number from {minimum:g} to {maximum:g}")
        if not minimum <= value <= maximum:
            raise self._wrong(name, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return dict(value)

    def nested(self, name: str, known: Sequence[str]) -> Params:
        """An object parameter, read as parameters of its own."""
        return Params(self.mapping(name), known, f"{self._where}: {name}")
