"""Tensors in memory that a third process owns and writes, which a worker maps too: nobody between them copies.

A front of the inference service puts what it receives into a segment of its own. The process that drives workers knows
the segment by its descriptor, and passes that on.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from enginehouse.errors import InternalError


class SharedSegment:
    """A memfd of another process. Mapped here when somebody looks into it; given up when nobody holds it any more.

    Args:
        descriptor: taken over.

    Raises:
        InternalError: it is smaller than its owner said.
    """

    def __init__(self, size: int, descriptor: int) -> None:
        self.size = size
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None
        if size < 1 or os.fstat(descriptor).st_size < size:
            raise InternalError(f"a segment is smaller than the {size} bytes that its owner announced")

    def view(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset` on, read-only."""
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, self.size, prot=mmap.PROT_READ)
        return memoryview(self._memory)[offset : offset + size]

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, BufferError):  # somebody looks at it: unmapped when the last view goes
            if self._memory is not None:
                self._memory.close()
        os.close(self.descriptor)


class SharedFile:
    """A file whose owner may make it smaller at any time, so that nobody maps it to read it: a client's shared memory.

    Args:
        descriptor: taken over; closed when nobody holds this any more: a request may still use what is unregistered.
        size: bytes of it that are used, from its beginning on.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size

    def __del__(self) -> None:
        os.close(self.descriptor)


class SharedPart:
    """Bytes of such a segment. Their owner writes them again once nobody holds `loan`.

    Raises:
        InternalError: the segment has not that many.
    """

    # No dataclass: one is made for each tensor of a request.
    __slots__ = ("length", "loan", "offset", "segment")

    def __init__(self, segment: SharedSegment, offset: int, length: int, loan: object = None) -> None:
        if offset < 0 or length < 0 or offset + length > segment.size:
            raise InternalError(f"bytes {offset} to {offset + length} of a segment that has {segment.size}")
        self.segment, self.offset, self.length, self.loan = segment, offset, length, loan

    def __len__(self) -> int:
        return self.length

    def slice(self, start: int, stop: int) -> SharedPart:
        """Bytes `start` to `stop` of these."""
        return SharedPart(self.segment, self.offset + start, stop - start, self.loan)

    def view(self) -> memoryview:
        """The bytes where they are; not to be kept longer than this."""
        return self.segment.view(self.offset, self.length)
