"""The log of a stage's container, followed: events are told, the rest goes into the stage's log file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from enginehouse.errors import EnginehouseError, InvalidArgumentError, NotFoundError, UnavailableError
from enginehouse.kubernetes.api import KubernetesApi
from enginehouse.workers.events import MAX_LINE_BYTES, ErrorEvent, Progress, parse_event

_AGAIN_SECONDS = 0.2
# A log that the kubelet cannot give any more must not hold up what the pod's status says already.
_LAST_SECONDS = 20.0


class StageLog:
    """Sorts lines: a stage's events, and everything else, which is appended to a file.

    `error` is the first error that the stage reported.
    """

    def __init__(self, file: Path, progress: Progress) -> None:
        self._file = file.open("ab", buffering=0)
        self._progress = progress
        self._rest = b""
        self.error: EnginehouseError | None = None

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line(self._rest)
        self._file.close()

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line + b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._line(self._rest)
            self._rest = b""

    def note(self, text: str) -> None:
        """A line of our own."""
        self._file.write(text.encode() + b"\n")

    def _line(self, line: bytes) -> None:
        event = parse_event(line) if line.startswith(b'{"event"') else None
        if event is None:
            self._file.write(line)
        elif isinstance(event, ErrorEvent):
            self.error = self.error or event.error
        else:
            self._progress(event.fraction, event.message)


async def follow_log(
    api: KubernetesApi, path: str, container: str, ended: Callable[[], bool], feed: Callable[[bytes], None]
) -> None:
    """Pass on a container's log until the container has ended; a stream that breaks goes on where it was.

    Args:
        path: of the pod's log.
        ended: whether the container has, as far as is known.
    """
    consumed = 0
    ended_at: float | None = None
    while True:
        was_ended = ended()
        skip = consumed
        try:
            async for data in api.log(path, container=container, follow="true"):
                new, skip = data[skip:], max(0, skip - len(data))
                consumed += len(new)
                if new:
                    feed(new)
            if was_ended:
                return
        except NotFoundError:
            return  # the pod is gone, and its log with it
        except (InvalidArgumentError, UnavailableError):
            ended_at = ended_at or (time.monotonic() if was_ended else None)
            if ended_at is not None and time.monotonic() - ended_at > _LAST_SECONDS:
                return
        await asyncio.sleep(_AGAIN_SECONDS)


async def log_tail(api: KubernetesApi, path: str, container: str, lines: int) -> bytes:
    """The last lines of a container's log; nothing when there is none."""
    data = b""
    try:
        async for part in api.log(path, container=container, tailLines=str(lines)):
            data += part
    except EnginehouseError:
        return b""
    return data
