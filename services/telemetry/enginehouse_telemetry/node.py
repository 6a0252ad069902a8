"""Everything of a node in one reading, and the sources that a reading is made from."""

from __future__ import annotations

import time
from typing import Protocol

from enginehouse_telemetry.nvml_collector import GpuStatus
from enginehouse_telemetry.readings import GpuReading, HostReading, NodeReading


class GpuSource(Protocol):
    """Reads GPUs. One thread calls `read` and `close`; the rest may be read from any."""

    message: str
    statuses: tuple[GpuStatus, ...]

    def read(self) -> tuple[GpuReading, ...]: ...

    def close(self) -> None: ...


class HostSource(Protocol):
    """Reads the host."""

    def read(self) -> HostReading: ...


class NodeCollector:
    """Numbers and dates readings."""

    def __init__(self, gpus: GpuSource, host: HostSource) -> None:
        self.gpus = gpus
        self._host = host
        self._sequence = 0

    def read(self) -> NodeReading:
        time_ns, monotonic = time.time_ns(), time.monotonic()
        gpus, host = self.gpus.read(), self._host.read()
        self._sequence += 1
        return NodeReading(time_ns, monotonic, self._sequence, gpus, host)

    def close(self) -> None:
        self.gpus.close()
