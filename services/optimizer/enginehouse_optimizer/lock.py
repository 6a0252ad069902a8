"""One optimizer to a data folder: a lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from enginehouse.errors import FailedPreconditionError


class DataDirLock:
    """Holds `{data_dir}/lock` from `acquire()` to `release()`."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock, and write our process id into it for whoever finds it taken.

        Raises:
            FailedPreconditionError: another optimizer holds it, or the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise FailedPreconditionError(
                f"the data folder {self._path.parent} cannot be used: {error}. Set ENGINEHOUSE_DATA_DIR to a folder "
                "that this user may write"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise FailedPreconditionError(
                f"another optimizer (process {holder}) uses the data folder {self._path.parent}: stop it, or set "
                "ENGINEHOUSE_DATA_DIR to another folder",
                details={"pid": holder},
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
