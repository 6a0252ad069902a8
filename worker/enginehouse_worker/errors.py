"""The one error that a worker reports to its caller, with the gRPC status the caller answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WorkerError(Exception):
    """Something the caller should hear about. `code` is a gRPC status name such as INVALID_ARGUMENT."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
