"""Clients' POSIX shared memory: regions that a client registered, by name.

Regions are read and written with system calls, never mapped: their owner may truncate them at any time, which would
kill a process that touches the map.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from enginehouse.workers.tensors import Buffer, FilePart

_DIRECTORY = Path("/dev/shm")


class _Descriptor:
    """A descriptor that is closed when nobody holds it: a request may still use a region that is being unregistered."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True)
class Region:
    """`size` bytes from `offset` on of the shared memory object `key`."""

    name: str
    key: str
    offset: int
    size: int
    descriptor: _Descriptor

    def part(self, offset: int, size: int, what: str) -> FilePart:
        """Bytes of the region, for reading.

        Raises:
            InvalidArgumentError: it has not that many.
        """
        self._check(offset, size, what)
        return FilePart(self.descriptor.number, self.offset + offset, size, self.descriptor)

    def write(self, offset: int, pieces: tuple[Buffer, ...], what: str) -> None:
        """Write pieces one after the other.

        Raises:
            InvalidArgumentError: the region, or what its owner left of it, is too small.
        """
        size = sum(len(piece) for piece in pieces)
        self._check(offset, size, what)
        if os.fstat(self.descriptor.number).st_size < self.offset + offset + size:
            raise InvalidArgumentError(f"{what}: shared memory {self.key!r} was made smaller than registered")
        position = self.offset + offset
        for piece in pieces:
            data = memoryview(piece)
            while data:
                written = os.pwrite(self.descriptor.number, data, position)
                data, position = data[written:], position + written

    def _check(self, offset: int, size: int, what: str) -> None:
        if offset + size > self.size:
            raise InvalidArgumentError(
                f"{what}: {size} bytes from {offset} on of shared memory region {self.name!r}, which has {self.size}"
            )


class Regions:
    """The registered regions of this process."""

    def __init__(self, directory: Path = _DIRECTORY) -> None:
        self._directory = directory
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Open a shared memory object under a name.

        Raises:
            InvalidArgumentError: the key is none, or the object is smaller than offset and size.
            AlreadyExistsError: the name is taken.
            NotFoundError: there is no such object.
        """
        if not name or size < 1:
            raise InvalidArgumentError(f"shared memory region {name!r} of {size} bytes: expected a name and a size")
        file = key.lstrip("/")
        if not file or "/" in file or file in (".", ".."):
            raise InvalidArgumentError(
                f"shared memory key {key!r} is not valid: expected a name such as '/my-inputs', as for shm_open"
            )
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region {name!r} is registered already: unregister it first")
        try:
            number = os.open(self._directory / file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFoundError(
                f"no shared memory object {key!r} on the server's machine: shared memory works between processes of "
                "one machine (and one IPC namespace)"
            ) from None
        except OSError as error:
            raise InvalidArgumentError(f"shared memory object {key!r} cannot be opened: {error.strerror}") from error
        descriptor = _Descriptor(number)
        actual = os.fstat(number).st_size
        if actual < offset + size:
            raise InvalidArgumentError(
                f"shared memory object {key!r} has {actual} bytes: expected at least {offset + size} (offset and size)"
            )
        self._regions[name] = Region(name, key, offset, size, descriptor)

    def get(self, name: str) -> Region:
        """The region of that name.

        Raises:
            NotFoundError: none is registered.
        """
        if name not in self._regions:
            raise NotFoundError(f"no shared memory region {name!r} is registered in this process")
        return self._regions[name]

    def list(self, name: str = "") -> list[Region]:
        """The region of that name, or all.

        Raises:
            NotFoundError: the name is given and none is registered.
        """
        return [self.get(name)] if name else list(self._regions.values())

    def unregister(self, name: str = "") -> None:
        """Forget the region of that name, or all. Nothing when there is none, as in Triton."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()
