"""One `up` or `down` at a time in a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.errors import UnavailableError


@contextmanager
def locked(home: Path, timeout: float) -> Iterator[None]:
    """Hold the folder's lock. The kernel lets go of it when the process ends, however it ends.

    Raises:
        UnavailableError: another process holds it for `timeout` seconds.
    """
    home.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with (home / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"another `enginehouse up` or `down` works in {home}: wait for it to end"
                    ) from None
                time.sleep(0.1)
        yield
