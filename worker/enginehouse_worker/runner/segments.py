"""Shared memory: segments that this side owns and reuses, and segments of the peer mapped here."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from enginehouse_worker.backends.base import DeviceMemory, FilePiece
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.regions import Hold

SMALLEST = 1 << 12
# Free segments kept for reuse; beyond it the least useful are given back to the system.
KEEP_BYTES = 512 << 20


@dataclass(frozen=True)
class Segment:
    """A memfd of ours. `size` is a power of two, so that few sizes serve all requests."""

    id: int
    size: int
    descriptor: int
    memory: mmap.mmap = field(repr=False, compare=False)

    def view(self) -> memoryview:
        return memoryview(self.memory)


def size_class(size: int) -> int:
    """The smallest power of two (from 4 KiB on) that holds `size` bytes."""
    return max(SMALLEST, 1 << max(size - 1, 0).bit_length())


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
    """Segments that we write. Thread-safe.

    Args:
        announce: tells the peer about a new segment, before its first use.
        drop: tells the peer that a segment will not be used again.
        keep_bytes: how many free bytes to keep for reuse.
    """

    def __init__(
        self, announce: Callable[[Segment], None], drop: Callable[[Segment], None], keep_bytes: int = KEEP_BYTES
    ) -> None:
        self._announce = announce
        self._drop = drop
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._free: dict[int, list[Segment]] = {}
        self._free_bytes = 0
        self._used: dict[int, Segment] = {}
        self._next = 1
        # By segment: what it is registered with, None where that was tried in vain.
        self._registered: dict[int, DeviceMemory | None] = {}

    def acquire(self, size: int, memory: DeviceMemory | None = None) -> Segment:
        """A segment of at least `size` bytes, ours until `release`; its content is undefined.

        Args:
            memory: a device to register it with, once, so that it writes there directly.
        """
        segment = self._acquire(size)
        if memory is not None and segment.id not in self._registered:
            try:
                registered = memory.register(_address(segment.memory), segment.size, writable=True)
            except BaseException:
                self.release(segment.id)
                raise
            self._registered[segment.id] = memory if registered else None
        return segment

    def _acquire(self, size: int) -> Segment:
        wanted = size_class(size)
        with self._lock:
            if free := self._free.get(wanted):
                segment = free.pop()
                self._free_bytes -= wanted
                self._used[segment.id] = segment
                return segment
            identifier = self._next
            self._next += 1
        segment = create(identifier, wanted)
        with self._lock:
            self._used[identifier] = segment
        self._announce(segment)
        return segment

    def release(self, identifier: int) -> bool:
        """The peer is done with a segment; False when it was not in use."""
        with self._lock:
            segment = self._used.pop(identifier, None)
            if segment is None:
                return False
            self._free.setdefault(segment.size, []).append(segment)
            self._free_bytes += segment.size
            dropped = self._trim()
        for old in dropped:
            self._drop(old)
            if (memory := self._registered.pop(old.id, None)) is not None:
                memory.unregister(_address(old.memory))
            _close(old.memory)
            os.close(old.descriptor)
        return True

    def _trim(self) -> list[Segment]:
        dropped = []
        while self._free_bytes > self._keep_bytes:
            largest = max(size for size, free in self._free.items() if free)
            dropped.append(self._free[largest].pop(0))
            self._free_bytes -= largest
        return dropped


@dataclass
class _Mapped:
    """A peer's segment. `memory` is registered with `device` when that is set; `tried` once that was attempted.

    `file`: its owner may truncate it. It is mapped only to be registered, and read with system calls.
    """

    memory: mmap.mmap | None
    descriptor: int
    size: int
    file: bool = False
    users: int = 0
    dropped: bool = False
    tried: bool = False
    device: DeviceMemory | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class SegmentMap:
    """The peer's segments, mapped for reading. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maps: dict[int, _Mapped] = {}

    def add(self, identifier: int, size: int, descriptor: int, *, file: bool = False) -> None:
        """Map a segment; takes the descriptor over.

        Args:
            file: it is one that its owner may truncate.

        Raises:
            WorkerError: INVALID_ARGUMENT when the descriptor's file is smaller than announced.
        """
        try:
            actual = os.fstat(descriptor).st_size
            if size < 1 or (actual < size and not file):  # a file's owner may have made it smaller: requests tell
                message = f"segment {identifier} was announced with {size} bytes but has {actual}"
                raise WorkerError("INVALID_ARGUMENT", message)
            memory = None if file else mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            mapped = _Mapped(memory, descriptor, size, file)
        except BaseException:
            os.close(descriptor)
            raise
        self.drop(identifier)
        self._maps[identifier] = mapped

    def drop(self, identifier: int) -> None:
        """Unmap a segment once nothing holds it."""
        with self._lock:
            mapped = self._maps.pop(identifier, None)
            if mapped is None:
                return
            mapped.dropped = True
            if mapped.users:
                return
        _unmap(mapped)

    def hold(self, identifiers: Sequence[int], memory: DeviceMemory) -> Hold:
        """Keep segments mapped while a device copies from them; registers each with it, once.

        Raises:
            WorkerError: INVALID_ARGUMENT for one that was not announced.
        """
        held: list[_Mapped] = []
        hold = Hold(lambda: self._release(held))
        try:
            for identifier in identifiers:
                with self._lock:
                    mapped = self._find(identifier)
                    mapped.users += 1
                    held.append(mapped)
                if not mapped.tried:
                    _register(mapped, memory)
        except BaseException:
            hold.release()
            raise
        return hold

    def view(self, identifier: int, offset: int, size: int) -> memoryview:
        """`size` bytes of a segment from `offset` on.

        Raises:
            WorkerError: INVALID_ARGUMENT when there is no such segment or it is shorter.
        """
        memory = self._within(identifier, offset, size).memory
        if memory is None:
            raise WorkerError("INVALID_ARGUMENT", f"segment {identifier} is a file: it has no view")
        return memoryview(memory)[offset : offset + size].toreadonly()

    def piece(self, identifier: int, offset: int, size: int) -> memoryview | FilePiece:
        """The same, or where the bytes lie in a file that is only read.

        Raises:
            WorkerError: as `view`.
        """
        mapped = self._within(identifier, offset, size)
        if not mapped.file:
            return self.view(identifier, offset, size)
        locked = None
        if mapped.memory is not None:
            locked = np.frombuffer(mapped.memory, np.uint8, size, offset)
        return FilePiece(mapped.descriptor, offset, size, locked)

    def _within(self, identifier: int, offset: int, size: int) -> _Mapped:
        mapped = self._find(identifier)
        if offset < 0 or size < 0 or offset + size > mapped.size:
            message = f"bytes {offset} to {offset + size} of segment {identifier}, which has {mapped.size}"
            raise WorkerError("INVALID_ARGUMENT", message)
        return mapped

    def _find(self, identifier: int) -> _Mapped:
        mapped = self._maps.get(identifier)
        if mapped is None:
            raise WorkerError("INVALID_ARGUMENT", f"unknown segment {identifier}: expected one that a frame announced")
        return mapped

    def _release(self, held: Sequence[_Mapped]) -> None:
        unused = []
        with self._lock:
            for mapped in held:
                mapped.users -= 1
                if mapped.dropped and not mapped.users:
                    unused.append(mapped)
        for mapped in unused:
            _unmap(mapped)


def _register(mapped: _Mapped, memory: DeviceMemory) -> None:
    with mapped.lock:
        if mapped.tried:
            return
        with contextlib.suppress(OSError, ValueError):  # a file that was made smaller meanwhile cannot be mapped
            _lock_pages(mapped, memory)
        mapped.tried = True


def _lock_pages(mapped: _Mapped, memory: DeviceMemory) -> None:
    readable = mapped.memory
    if readable is None:
        readable = mmap.mmap(mapped.descriptor, mapped.size, prot=mmap.PROT_READ)
    if memory.register(_address(readable), mapped.size, writable=False):
        mapped.memory, mapped.device = readable, memory
        return
    # Not every driver locks pages that are mapped for reading only; we still write none of them.
    writable = mmap.mmap(mapped.descriptor, mapped.size)
    if memory.register(_address(writable), mapped.size, writable=True):
        mapped.memory, mapped.device = writable, memory
        _close(readable)
    else:
        writable.close()


def _unmap(mapped: _Mapped) -> None:
    if mapped.memory is not None:
        if mapped.device is not None:
            mapped.device.unregister(_address(mapped.memory))
        _close(mapped.memory)
    os.close(mapped.descriptor)


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _close(memory: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # an array still looks at it: unmapped when the last one goes
        memory.close()
