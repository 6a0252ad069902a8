"""Device memory of the front's clients: opened once by its handle, closed once what uses it has run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse_worker.backends.base import DeviceArray, DeviceMemory, DeviceRegion, numpy_dtype
from enginehouse_worker.errors import WorkerError


@dataclass
class _Open:
    region: DeviceRegion
    users: int = 0
    closing: Callable[[], None] | None = None


class Hold:
    """Keeps what an inference uses until `release`, which may be called more than once."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


class RegionMap:
    """Open regions by the front's numbers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[int, _Open] = {}

    def open(self, number: int, size: int, handle: bytes, memory: DeviceMemory) -> None:
        """Open a region.

        Raises:
            WorkerError: INVALID_ARGUMENT for a number in use, a size that makes no sense, or a bad handle.
        """
        if size < 1:
            raise WorkerError("INVALID_ARGUMENT", f"region {number} of {size} bytes")
        with self._lock:
            if number in self._regions:
                raise WorkerError("INVALID_ARGUMENT", f"region {number} is open already")
        region = memory.open_region(handle, size)
        with self._lock:
            self._regions[number] = _Open(region)

    def close(self, number: int, then: Callable[[], None]) -> None:
        """Close a region as soon as nothing uses it, and call `then`. No new use of it begins.

        Raises:
            WorkerError: INVALID_ARGUMENT when there is no such region.
        """
        with self._lock:
            found = self._regions.get(number)
            if found is None or found.closing is not None:
                raise WorkerError("INVALID_ARGUMENT", f"unknown region {number}: expected one that is open")
            found.closing = then
            if found.users:
                return
            del self._regions[number]
        found.region.close()
        then()

    def hold(self, numbers: Sequence[int]) -> Hold:
        """Keep regions open.

        Raises:
            WorkerError: INVALID_ARGUMENT for one that is not open.
        """
        wanted = sorted(set(numbers))
        if not wanted:
            return Hold(lambda: None)
        with self._lock:
            for number in wanted:
                found = self._regions.get(number)
                if found is None or found.closing is not None:
                    raise WorkerError("INVALID_ARGUMENT", f"unknown region {number}: expected one that is open")
            for number in wanted:
                self._regions[number].users += 1
        return Hold(lambda: self._release(wanted))

    def array(self, number: int, dtype: str, shape: tuple[int, ...], offset: int) -> DeviceArray:
        """An array in a region that is held.

        Raises:
            WorkerError: INVALID_ARGUMENT when it does not lie in the region, and for text.
        """
        if dtype == "BYTES":
            raise WorkerError("INVALID_ARGUMENT", "BYTES tensors cannot be in device memory")
        try:
            kind = numpy_dtype(dtype)
        except ValueError as error:
            raise WorkerError("INVALID_ARGUMENT", str(error)) from None
        with self._lock:
            found = self._regions.get(number)
        if found is None:
            raise WorkerError("INVALID_ARGUMENT", f"unknown region {number}: expected one that is open")
        return found.region.array(kind, shape, offset)

    def _release(self, numbers: Sequence[int]) -> None:
        closing = []
        with self._lock:
            for number in numbers:
                found = self._regions[number]
                found.users -= 1
                if not found.users and found.closing is not None:
                    closing.append(self._regions.pop(number))
        for done in closing:
            done.region.close()
            if done.closing is not None:
                done.closing()


def region_numbers(frame: Any) -> list[int]:
    """The regions that an `infer` frame names."""
    tensors = [*frame.get("inputs", ()), *frame.get("places", ())]
    return [int(tensor["region"]) for tensor in tensors if "region" in tensor]
