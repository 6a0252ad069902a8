"""Small file operations that the store's promises rest on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from enginehouse.errors import EnginehouseError, InternalError, ResourceExhaustedError

READ_ONLY = 0o444


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; a short write goes on."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def storage_error(error: OSError, doing: str) -> EnginehouseError:
    """What a caller should see of an OSError: RESOURCE_EXHAUSTED for a full disk or quota, INTERNAL for the rest."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhaustedError(f"no space left while {doing}: free space on the device and try again ({error})")
    return InternalError(f"input or output failed while {doing}: {error}")
