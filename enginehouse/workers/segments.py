"""Shared memory with a worker: segments that we own and reuse, and the worker's segments mapped here.

Nothing here is thread-safe: an event loop's thread uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from enginehouse.errors import InternalError, ResourceExhaustedError

SMALLEST = 1 << 12
# Free segments kept for reuse; beyond it the largest are given back to the system.
KEEP_BYTES = 512 << 20
# Tensors begin on cache lines, which vector loads and device copies like.
ALIGNMENT = 64


def size_class(size: int) -> int:
    """The smallest power of two (from 4 KiB on) that holds `size` bytes, so that few sizes serve all requests."""
    return max(SMALLEST, 1 << max(size - 1, 0).bit_length())


def aligned(size: int) -> int:
    """`size` rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Segment:
    """A memfd of ours; `view` is all of it, writable."""

    id: int
    size: int
    descriptor: int
    memory: mmap.mmap = field(repr=False, compare=False)

    @property
    def view(self) -> memoryview:
        return memoryview(self.memory)

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # somebody looks at it: unmapped when the last view goes
            self.memory.close()
        os.close(self.descriptor)


def create(identifier: int, size: int) -> Segment:
    """A new segment that neither side can shrink under the other's feet."""
    descriptor = os.memfd_create(f"enginehouse-{identifier}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return Segment(identifier, size, descriptor, mmap.mmap(descriptor, size))
    except BaseException:
        os.close(descriptor)
        raise


class SegmentPool:
    """Segments that we write.

    Args:
        announce: tells the worker about a new segment, before its first use.
        drop: tells the worker that a segment will not be used again.
        keep_bytes: how many free bytes to keep for reuse.
    """

    def __init__(
        self, announce: Callable[[Segment], None], drop: Callable[[Segment], None], keep_bytes: int = KEEP_BYTES
    ) -> None:
        self._announce = announce
        self._drop = drop
        self._keep_bytes = keep_bytes
        self._free: dict[int, list[Segment]] = {}
        self._free_bytes = 0
        self._used: dict[int, Segment] = {}
        self._next = 1

    @property
    def used(self) -> int:
        """How many segments are in use."""
        return len(self._used)

    @property
    def free_bytes(self) -> int:
        """Bytes of segments kept for reuse."""
        return self._free_bytes

    def take_number(self) -> int:
        """A number that no segment of this pool has or will have: for another's, announced beside ours."""
        self._next += 1
        return self._next - 1

    def acquire(self, size: int) -> Segment:
        """A segment of at least `size` bytes, ours until `release`; its content is undefined.

        Raises:
            ResourceExhaustedError: the system has no memory or no descriptor left for it.
        """
        wanted = size_class(size)
        if free := self._free.get(wanted):
            segment = free.pop()
            self._free_bytes -= wanted
        else:
            segment = self._create(wanted)
        self._used[segment.id] = segment
        return segment

    def _create(self, size: int) -> Segment:
        try:
            segment = create(self.take_number(), size)
            try:
                self._announce(segment)
            except BaseException:
                segment.close()
                raise
        except OSError as error:
            raise ResourceExhaustedError(
                f"no shared memory of {size} bytes for a worker: {error}", retry_after_seconds=1.0
            ) from error
        return segment

    def release(self, segment: Segment) -> None:
        """The worker is done with a segment."""
        if self._used.pop(segment.id, None) is None:
            return
        self._free.setdefault(segment.size, []).append(segment)
        self._free_bytes += segment.size
        while self._free_bytes > self._keep_bytes:
            largest = max(size for size, free in self._free.items() if free)
            old = self._free[largest].pop(0)
            self._free_bytes -= largest
            self._drop(old)
            old.close()

    def close(self) -> None:
        """Give everything back; the worker is gone."""
        for segment in (*self._used.values(), *(s for free in self._free.values() for s in free)):
            segment.close()
        self._used.clear()
        self._free.clear()
        self._free_bytes = 0


class SegmentMap:
    """The worker's segments, mapped for reading."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def add(self, identifier: int, size: int, descriptor: int) -> None:
        """Map a segment; closes the descriptor."""
        try:
            if size < 1 or os.fstat(descriptor).st_size < size:
                raise InternalError(f"the worker's segment {identifier} is smaller than the {size} bytes it announced")
            self._maps[identifier] = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def drop(self, identifier: int) -> None:
        """The worker does not use a segment again."""
        if (memory := self._maps.pop(identifier, None)) is not None:
            with contextlib.suppress(BufferError):
                memory.close()

    def view(self, identifier: int, offset: int, size: int) -> memoryview:
        """`size` bytes of a segment from `offset` on, read-only.

        Raises:
            InternalError: the worker named what it did not announce.
        """
        memory = self._maps.get(identifier)
        if memory is None or offset < 0 or size < 0 or offset + size > len(memory):
            raise InternalError(f"the worker named bytes {offset} to {offset + size} of segment {identifier}")
        return memoryview(memory)[offset : offset + size]

    def close(self) -> None:
        for identifier in list(self._maps):
            self.drop(identifier)
