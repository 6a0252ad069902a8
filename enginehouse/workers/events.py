"""Events of a build stage: JSON lines, as PROTOCOL.md section 1 has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from enginehouse.errors import EnginehouseError, error_for_name

Progress = Callable[[float, str], None]

# A line longer than this is no event; it is dropped rather than kept in memory.
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class ProgressEvent:
    """`fraction` is in [0, 1]."""

    fraction: float
    message: str


@dataclass(frozen=True)
class ErrorEvent:
    """Why a stage failed."""

    error: EnginehouseError


def parse_event(line: bytes) -> ProgressEvent | ErrorEvent | None:
    """The event of a line; None when it is none (a newer worker's event, or garbage)."""
    try:
        value = json.loads(line)
        kind = value["event"]
        if kind == "progress":
            fraction = float(value["fraction"])
            if fraction != fraction:
                return None
            return ProgressEvent(min(max(fraction, 0.0), 1.0), str(value.get("message", "")))
        if kind == "error":
            details = value.get("details")
            texts = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in (details or {}).items()}
            return ErrorEvent(error_for_name(str(value["code"]), str(value["message"]), details=texts))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return None


class EventLines:
    """Cuts bytes into events, whatever pieces they come in."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[ProgressEvent | ErrorEvent]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif (event := parse_event(line)) is not None:
                events.append(event)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._skipping = b"", True
        return events
