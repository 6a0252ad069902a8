"""Clients' device memory: regions that a worker opens by a handle, and what a request reads and writes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from enginehouse.errors import NotFoundError

# Bytes of a CUDA IPC handle (cudaIpcMemHandle_t).
HANDLE_BYTES = 64


class DeviceRegion:
    """`size` bytes of a client's device memory, which a worker opens by `handle` (a CUDA IPC handle).

    One event loop's thread uses it.

    Args:
        number: the front's number for it, the same in every worker.
        name: the client's, for messages.
        on_unused: told once, when it is retired and nobody uses it any more.
    """

    def __init__(
        self,
        number: int,
        name: str,
        size: int,
        handle: bytes,
        on_unused: Callable[[DeviceRegion], None] = lambda region: None,
    ) -> None:
        self.number = number
        self.name = name
        self.size = size
        self.handle = handle
        self._on_unused = on_unused
        self._uses = 0
        self._retired = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it open.

        Raises:
            NotFoundError: it is retired, and nobody kept it.
        """
        if self._retired and not self._uses:
            raise NotFoundError(
                f"the CUDA shared memory region {self.name!r} was unregistered before the request ran",
                details={"region": self.name},
            )
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            self._settle()

    def retire(self) -> None:
        """No request names it any more: it is of no use once those that do have ended."""
        if not self._retired:
            self._retired = True
            self._settle()

    def _settle(self) -> None:
        if self._retired and not self._uses:
            self._on_unused(self)


@dataclass(frozen=True)
class RegionPart:
    """Bytes of a region, as an input."""

    region: DeviceRegion
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Place:
    """Where the output `name` goes: into a region, from `offset` on, where it has `size` bytes of room."""

    name: str
    region: DeviceRegion
    offset: int
    size: int


def held(regions: Collection[DeviceRegion]) -> AbstractContextManager[None]:
    """Keep regions open while the context lasts.

    Raises:
        NotFoundError: on entering; see `DeviceRegion.held`.
    """
    return _held(regions) if regions else nullcontext()  # as for nearly every request


@contextmanager
def _held(regions: Collection[DeviceRegion]) -> Iterator[None]:
    with ExitStack() as stack:
        for region in regions:
            stack.enter_context(region.held())
        yield
