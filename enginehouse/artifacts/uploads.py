"""The files of a blob store that are not blobs yet: uploads that resume, and files on their way in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from enginehouse.artifacts.digest import parse_digest
from enginehouse.artifacts.files import storage_error
from enginehouse.artifacts.uses import ago_ns
from enginehouse.errors import FailedPreconditionError

_TEMPORARY = "tmp-"


class Uploads:
    """The folder `partial/`: a file for each upload, named by its digits, and `tmp-*`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """The file of an upload, whether or not there is one."""
        return self.folder / parse_digest(digest)

    def drop(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.files())

    def files(self) -> Iterator[tuple[Path, int, int]]:
        """(path, bytes, Unix nanoseconds of the last change) of each file."""
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield path, status.st_size, status.st_mtime_ns

    def sweep(self, older_than_seconds: float, *, alone: bool = False, dry_run: bool = False) -> int:
        """Remove what crashed writers and abandoned uploads left; returns how many files went (or would).

        Args:
            alone: nobody writes now, so that files on their way in are a crash's, whatever their age.
        """
        horizon = ago_ns(older_than_seconds)
        removed = 0
        for path, _, modified_ns in self.files():
            if (alone and path.name.startswith(_TEMPORARY)) or modified_ns < horizon:
                if not dry_run:
                    path.unlink(missing_ok=True)
                removed += 1
        return removed

    @contextmanager
    def temporary(self, doing: str) -> Iterator[Path]:
        """A name for a file on its way in; what is still there at the end of the block is removed.

        Raises:
            ResourceExhaustedError, InternalError: the block raised an OSError.
        """
        path = self.folder / f"{_TEMPORARY}{uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise storage_error(error, doing) from error
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, digest: str, *, create: bool, finished: Callable[[], bool]) -> Iterator[int]:
        """The upload's file, locked against other threads and processes.

        Args:
            finished: whether the blob is complete: its upload may end while we wait for the lock.

        Raises:
            FailedPreconditionError: there is no such upload, and `create` is not set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(digest)
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
            except FileNotFoundError:
                if finished():  # meanwhile: the caller looks again under the lock
                    create = True
                    continue
                raise FailedPreconditionError(f"no upload of {digest} has begun: send its bytes first") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Whoever held the lock may have published or dropped the file: the name is then another's, or none's.
                try:
                    same = os.path.samestat(os.fstat(descriptor), path.stat())
                except FileNotFoundError:
                    same = False
                if same:
                    yield descriptor
                    return
            finally:
                os.close(descriptor)
