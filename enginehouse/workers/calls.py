"""Frames that want an answer, and the answers that belong to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enginehouse.errors import EnginehouseError, error_for_name
from enginehouse.workers.framing import Frame
from enginehouse.workers.segments import Segment


@dataclass(frozen=True)
class _Waiting:
    future: asyncio.Future[Frame]
    segment: Segment | None
    keep: Sequence[object]


class Calls:
    """What a worker owes answers to.

    Args:
        send: sends a frame.
        free: told the segment of a request that is answered: the worker does not read it any more.
        discard: told an answer that nobody waits for.
    """

    def __init__(
        self, send: Callable[[Frame], None], free: Callable[[Segment], None], discard: Callable[[Frame], None]
    ) -> None:
        self._send = send
        self._free = free
        self._discard = discard
        self._waiting: dict[int, _Waiting] = {}
        self._next = 1

    async def call(self, frame: Frame, segment: Segment | None = None, keep: Sequence[object] = ()) -> Frame:
        """Send a frame and wait for its answer.

        Args:
            segment: of ours that the worker reads; free once there is an answer.
            keep: what must stay until there is an answer, also when nobody waits for it any more.

        Raises:
            EnginehouseError: the answer is an error.
        """
        identifier = self._next
        self._next += 1
        frame["id"] = identifier
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[identifier] = _Waiting(future, segment, keep)
        self._send(frame)
        try:
            return await future
        except asyncio.CancelledError:
            # The segment stays the worker's until it answers; `answer` then finds nobody waiting.
            if identifier in self._waiting and frame["type"] in ("infer", "measure"):
                self._send({"type": "cancel", "id": identifier})
            elif future.done() and not future.cancelled() and future.exception() is None:
                self._discard(future.result())
            raise
        finally:
            # It holds its error, whose traceback holds this frame and all above it: what those hold, such as the other
            # answers of a batch, would wait for a garbage collection.
            del future

    def answer(self, frame: Frame) -> bool:
        """Take an answer; False when nothing was asked that it could answer."""
        waiting = self._waiting.pop(frame.get("id") or 0, None)
        if waiting is None:
            return False
        if waiting.segment is not None:
            self._free(waiting.segment)
        if waiting.future.done():
            self._discard(frame)
        elif frame.get("type") == "error":
            waiting.future.set_exception(error_for_name(str(frame.get("code")), str(frame.get("message"))))
        else:
            waiting.future.set_result(frame)
        return True

    def fail(self, error: Callable[[], EnginehouseError]) -> None:
        """No answer comes any more: each call fails with an error of its own."""
        waiting, self._waiting = self._waiting, {}
        for item in waiting.values():
            if not item.future.done():
                item.future.set_exception(error())
