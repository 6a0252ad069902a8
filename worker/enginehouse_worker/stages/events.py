"""Events of a stage: JSON lines on a file descriptor."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any


class Events:
    """Writes events. Safe to use from several threads.

    Raises (from every method):
        BrokenPipeError: nobody reads events any more, so nobody waits for the stage.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def progress(self, fraction: float, message: str) -> None:
        """Say how far the stage is: `fraction` in [0, 1]."""
        self._write({"event": "progress", "fraction": round(min(max(fraction, 0.0), 1.0), 4), "message": message})

    def error(self, code: str, message: str, details: Mapping[str, Any]) -> None:
        """Say why the stage failed; `code` is a gRPC status name."""
        self._write({"event": "error", "code": code, "message": message, "details": dict(details)})

    def _write(self, event: Mapping[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]
