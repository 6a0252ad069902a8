"""The engine host: the one process that owns models, queues, statistics and shared memory, as a front sees it.

A front terminates gRPC and keeps what belongs to a connection: streams and their order, deadlines, metadata. What a
request means is the engine host's. It is in the front's own process (`service.local`), or behind a socket
(`fronts.remote`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

# A call's metadata, for those who want to know.
Metadata = Callable[[], Sequence[tuple[str, Any]] | None]


class EngineHost(Protocol):
    """Cancelling any of these takes the request back."""

    async def infer(self, message: bytes, deadline_ns: int | None, metadata: Metadata) -> bytes:
        """A serialized ModelInferRequest to a serialized ModelInferResponse.

        Args:
            deadline_ns: CLOCK_MONOTONIC; nobody waits for the answer from then on.

        Raises:
            EnginehouseError: the call's status.
        """

    async def infer_in_stream(self, message: bytes, strict: bool, metadata: Metadata) -> bytes:
        """A serialized ModelInferRequest to a serialized ModelStreamInferResponse, which may hold an error.

        Args:
            strict: raise errors, which end the stream.

        Raises:
            EnginehouseError: the stream's status, with `strict`.
        """

    async def manage(self, method: str, request: Any) -> Any:
        """Any other method of the protocol, by its name: request message to response message.

        Raises:
            EnginehouseError: the call's status.
        """
