"""A file that is read again when it changes: tokens, roles and certificates are replaced while a service runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

_T = TypeVar("_T")

# Between looks at the file.
LOOK_SECONDS = 1.0

Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """What changes when a file is replaced or written, also through Kubernetes' links to another folder.

    Raises:
        OSError: it is not there.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


class WatchedFile(Generic[_T]):
    """What a file holds, as it is now. A new content that is wrong changes nothing but is told.

    Args:
        parse: what its bytes mean; raises when they are wrong.
        wrong: told why a new content is not used, once for each.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], _T], *, wrong: Callable[[Path, Exception], None] = lambda p, e: None
    ) -> None:
        """Raises what reading and `parse` raise."""
        self.path = path
        self._parse = parse
        self._wrong = wrong
        self._stamp: Stamp | None = stamp(path)
        self._looked = time.monotonic()
        self._value = parse(path.read_bytes())

    def get(self) -> _T:
        """What it holds; at most a second old."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._value

    def _look(self) -> None:
        try:
            found: Stamp | None = stamp(self.path)
        except OSError:
            found = None
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._value = self._parse(self.path.read_bytes())
        except Exception as error:
            self._wrong(self.path, error)
