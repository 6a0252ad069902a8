"""Where blobs go whose bytes do not match their digest, so that somebody can look at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


class Quarantine:
    """The folder `quarantine/`: files named by the digits that they should have had, and something random."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, location: Path) -> None:
        """Move a file in; nothing happens when it is gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            location.rename(self.folder / f"{location.name}.{uuid4().hex[:8]}")

    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def clear(self, before_ns: int, *, dry_run: bool = False) -> int:
        """Remove what came before then (Unix nanoseconds); returns how many files went (or would)."""
        old = [path for path, _, came_ns in self._files() if came_ns < before_ns]
        if not dry_run:
            for path in old:
                path.unlink(missing_ok=True)
        return len(old)

    def _files(self) -> Iterator[tuple[Path, int, int]]:
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                # The time of the move: renaming changes that of the inode only.
                yield path, status.st_size, status.st_ctime_ns
