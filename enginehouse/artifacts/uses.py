"""When each blob was last wanted, and which are being removed: so that nobody is told of a blob that then goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

# Longer ago than anything here is; of more, nanoseconds would not fit into the database.
_EVER_SECONDS = 1e9


def ago_ns(seconds: float) -> int:
    """When it was `seconds` ago, in Unix nanoseconds; long before there were blobs for any more, also for infinity."""
    return time.time_ns() - round(min(seconds, _EVER_SECONDS) * 1e9)


class Uses:
    """Uses of blobs by this process, in its memory. Safe to use from threads.

    Whoever wants a blob says so before looking for it. Either that comes before its removal is decided, and the blob
    stays; or it waits for the removal, and the blob is not found.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last: dict[str, int] = {}
        self._leaving: set[str] = set()

    def touch(self, digest: str) -> None:
        """The blob is wanted now. Waits while it is being removed."""
        with self._changed:
            self._changed.wait_for(lambda: digest not in self._leaving)
            self._last[digest] = time.time_ns()

    def last(self, digest: str) -> int:
        """When it was last wanted, in Unix nanoseconds; 0 when it was not, or is forgotten."""
        with self._changed:
            return self._last.get(digest, 0)

    @contextmanager
    def leaving(self, digests: Sequence[str], before_ns: int) -> Iterator[list[str]]:
        """Those of the blobs that nobody has wanted since `before_ns`, for the block to remove."""
        with self._changed:
            chosen = [d for d in digests if self._last.get(d, 0) < before_ns and d not in self._leaving]
            self._leaving.update(chosen)
        try:
            yield chosen
        finally:
            with self._changed:
                self._leaving.difference_update(chosen)
                self._changed.notify_all()

    def forget(self, before_ns: int, keep: Collection[str] = ()) -> None:
        """Drop the uses before then, less those of some blobs.

        Callers may want blobs that were never there: the memory of them must not grow for ever.
        """
        with self._changed:
            self._last = {digest: last for digest, last in self._last.items() if last >= before_ns or digest in keep}
