"""Requests that no model counts: those that were refused before one was found."""

from __future__ import annotations

from enginehouse.errors import EnginehouseError


class Refusals:
    """Counts them by the name of their status."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, error: EnginehouseError) -> None:
        self._counts[error.reason] = self._counts.get(error.reason, 0) + 1

    def counts(self) -> list[tuple[str, int]]:
        """By status, such as ("NOT_FOUND", 3)."""
        return list(self._counts.items())
