"""Log lines of refused calls, so many a second at most: a stranger must not fill the log."""

from __future__ import annotations

import time
from typing import Any

import structlog

LINES_A_SECOND = 10

_log = structlog.get_logger("auth")


class Denials:
    """Writes what was refused. Never what was sent: tokens have no place in a log."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def log(self, event: str, **fields: Any) -> None:
        """One line, or one more in the count of those left out."""
        second = int(time.monotonic())
        if second != self._second:
            if self._left_out:
                _log.warning("more calls were refused", count=self._left_out)
            self._second, self._lines, self._left_out = second, 0, 0
        if self._lines >= LINES_A_SECOND:
            self._left_out += 1
            return
        self._lines += 1
        _log.warning(event, **fields)
