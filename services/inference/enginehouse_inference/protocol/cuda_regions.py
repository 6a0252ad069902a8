"""Clients' CUDA shared memory: device memory that a client registered by its IPC handle."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.workers.regions import DeviceRegion, Place, RegionPart
from enginehouse_inference.protocol.bounds import check_bounds


@dataclass(frozen=True)
class CudaRegion:
    """A registered region. `device_id` is the GPU's number as the client counts; the worker goes by the handle."""

    device_id: int
    memory: DeviceRegion

    @property
    def name(self) -> str:
        return self.memory.name

    @property
    def size(self) -> int:
        return self.memory.size

    def part(self, offset: int, size: int, what: str) -> RegionPart:
        """Bytes of the region, as an input.

        Raises:
            InvalidArgumentError: it has not that many.
        """
        check_bounds(self.name, self.size, offset, size, what)
        return RegionPart(self.memory, offset, size)

    def place(self, output: str, offset: int, size: int) -> Place:
        """Room for an output.

        Raises:
            InvalidArgumentError: the region has not that many bytes.
        """
        check_bounds(self.name, self.size, offset, size, f"output {output!r}")
        return Place(output, self.memory, offset, size)
