"""Clients' shared memory: the regions that clients registered, POSIX and CUDA, by name; one name is one region.

POSIX regions are written with system calls, and a worker reads them so: their owner may truncate them at any time,
which would kill a process that touches a map of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from enginehouse.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from enginehouse.workers.regions import HANDLE_BYTES, DeviceRegion
from enginehouse.workers.shared import SharedFile
from enginehouse.workers.tensors import Buffer, FilePart
from enginehouse_inference.protocol.bounds import check_bounds
from enginehouse_inference.protocol.cuda_regions import CudaRegion

_DIRECTORY = Path("/dev/shm")


@dataclass(frozen=True)
class Region:
    """`size` bytes from `offset` on of the shared memory object `key`."""

    name: str
    key: str
    offset: int
    size: int
    file: SharedFile

    def part(self, offset: int, size: int, what: str) -> FilePart:
        """Bytes of the region, for reading.

        Raises:
            InvalidArgumentError: it has not that many.
        """
        check_bounds(self.name, self.size, offset, size, what)
        return FilePart(self.file.descriptor, self.offset + offset, size, self.file)

    def write(self, offset: int, pieces: tuple[Buffer, ...], what: str) -> None:
        """Write pieces one after the other.

        Raises:
            InvalidArgumentError: the region, or what its owner left of it, is too small.
        """
        size = sum(len(piece) for piece in pieces)
        check_bounds(self.name, self.size, offset, size, what)
        if os.fstat(self.file.descriptor).st_size < self.offset + offset + size:
            raise InvalidArgumentError(f"{what}: shared memory {self.key!r} was made smaller than registered")
        position = self.offset + offset
        for piece in pieces:
            data = memoryview(piece)
            while data:
                written = os.pwrite(self.file.descriptor, data, position)
                data, position = data[written:], position + written


R = TypeVar("R", Region, CudaRegion)


class Regions:
    """The registered regions of this process.

    Args:
        on_unused: told a CUDA region's memory once the region is unregistered and no request uses it.
    """

    def __init__(
        self, directory: Path = _DIRECTORY, on_unused: Callable[[DeviceRegion], None] = lambda region: None
    ) -> None:
        self._directory = directory
        self._on_unused = on_unused
        self._regions: dict[str, Region | CudaRegion] = {}
        self._numbers = itertools.count(1)

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Open a shared memory object under a name.

        Raises:
            InvalidArgumentError: the key is none, or the object is smaller than offset and size.
            AlreadyExistsError: the name is taken.
            NotFoundError: there is no such object.
        """
        _check_named(name, size)
        file = key.lstrip("/")
        if not file or "/" in file or "\0" in file or file in (".", ".."):
            raise InvalidArgumentError(
                f"shared memory key {key!r} is not valid: expected a name such as '/my-inputs', as for shm_open"
            )
        self._check_free(name)
        try:
            number = os.open(self._directory / file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFoundError(
                f"no shared memory object {key!r} on the server's machine: shared memory works between processes of "
                "one machine (and one IPC namespace)"
            ) from None
        except OSError as error:
            raise InvalidArgumentError(f"shared memory object {key!r} cannot be opened: {error.strerror}") from error
        opened = SharedFile(number, offset + size)
        actual = os.fstat(number).st_size
        if actual < offset + size:
            raise InvalidArgumentError(
                f"shared memory object {key!r} has {actual} bytes: expected at least {offset + size} (offset and size)"
            )
        self._regions[name] = Region(name, key, offset, size, opened)

    def register_cuda(self, name: str, handle: bytes, device_id: int, size: int) -> CudaRegion:
        """Take device memory under a name; workers open it.

        Raises:
            InvalidArgumentError: that is no IPC handle.
            AlreadyExistsError: the name is taken.
        """
        _check_named(name, size)
        if len(handle) != HANDLE_BYTES:
            raise InvalidArgumentError(
                f"CUDA shared memory region {name!r}: raw_handle has {len(handle)} bytes: expected the {HANDLE_BYTES} "
                "bytes of a CUDA IPC handle (cudaIpcGetMemHandle), as they are and not in base64"
            )
        if device_id < 0:
            raise InvalidArgumentError(f"CUDA shared memory region {name!r}: device_id {device_id}: expected 0 or more")
        self._check_free(name)
        region = CudaRegion(device_id, DeviceRegion(next(self._numbers), name, size, handle, self._on_unused))
        self._regions[name] = region
        return region

    def get(self, name: str) -> Region | CudaRegion:
        """The region of that name.

        Raises:
            NotFoundError: none is registered.
        """
        if name not in self._regions:
            raise NotFoundError(
                f"no shared memory region {name!r} is registered in this process", details={"region": name}
            )
        return self._regions[name]

    def list(self, kind: type[R], name: str = "") -> list[R]:
        """The region of that kind and name, or all of the kind.

        Raises:
            NotFoundError: the name is given and none is registered.
        """
        found = [region for region in self._regions.values() if isinstance(region, kind) and name in ("", region.name)]
        if name and not found:
            what = "CUDA" if kind is CudaRegion else "system"
            raise NotFoundError(f"no {what} shared memory region {name!r} is registered in this process")
        return found

    def unregister(self, kind: type[Region] | type[CudaRegion], name: str = "") -> None:
        """Forget the region of that kind and name, or all of the kind. Nothing when there is none, as in Triton."""
        for region in list(self._regions.values()):
            if isinstance(region, kind) and name in ("", region.name):
                del self._regions[region.name]
                if isinstance(region, CudaRegion):
                    region.memory.retire()

    def _check_free(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region {name!r} is registered already: unregister it first")


def _check_named(name: str, size: int) -> None:
    if not name or size < 1:
        raise InvalidArgumentError(f"shared memory region {name!r} of {size} bytes: expected a name and a size")
