"""PCIe throughput, in a thread of its own: NVML measures for 20 ms in each call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml as nv

from enginehouse_telemetry import nvml_values as v
from enginehouse_telemetry.nvml_device import ASK_AGAIN_SECONDS
from enginehouse_telemetry.nvml_errors import UNSUPPORTED, code_of
from enginehouse_telemetry.timing import Timings

_KIBIBYTE = 1024  # NVML's "KB/s"

_COUNTERS = (
    ("pcie_tx_bytes_per_second", nv.NVML_PCIE_UTIL_TX_BYTES),
    ("pcie_rx_bytes_per_second", nv.NVML_PCIE_UTIL_RX_BYTES),
)


@dataclass(frozen=True)
class _Measured:
    at: float
    values: Mapping[str, int]


class PcieThroughput:
    """Measures the given GPUs every `period` seconds until closed."""

    def __init__(
        self,
        period: float = 1.0,
        *,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period, self._timings, self._clock = period, timings, clock
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}
        self._latest: dict[str, _Measured] = {}
        self._ask_again: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, handles: Mapping[str, Any]) -> None:
        """Measure these GPUs (handles by UUID) from now on. When it returns, no call on another handle is running."""
        with self._lock:
            self._handles = dict(handles)
            self._latest = {uuid: seen for uuid, seen in self._latest.items() if uuid in handles}
            self._ask_again = {}
        if self._thread is None and handles:
            self._thread = threading.Thread(target=self._run, name="pcie-throughput", daemon=True)
            self._thread.start()

    def values(self, uuid: str) -> Mapping[str, Any]:
        """The newest measurement of a GPU, by field name; empty when there is none that is fresh."""
        seen = self._latest.get(uuid)
        fresh = seen is not None and self._clock() - seen.at <= 3 * self._period
        return seen.values if seen is not None and fresh else {}

    def close(self) -> None:
        self._closed.set()
        self.watch({})
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closed.wait(self._period):
            for uuid in list(self._handles):
                self._measure(uuid)

    def _measure(self, uuid: str) -> None:
        values: dict[str, int] = {}
        for field, counter in _COUNTERS:
            if (value := self._ask(uuid, counter)) is not None:
                values[field] = value * _KIBIBYTE
        with self._lock:
            if uuid in self._handles:
                self._latest[uuid] = _Measured(self._clock(), values)

    def _ask(self, uuid: str, counter: int) -> int | None:
        # Held for one call: whoever closes the library waits 20 ms at most.
        with self._lock:
            handle = self._handles.get(uuid)
            if handle is None or self._ask_again.get(uuid, 0.0) > self._clock():
                return None
            started = time.perf_counter()
            try:
                return v.number(nv.nvmlDeviceGetPcieThroughput(handle, counter))
            except nv.NVMLError as error:
                # A lost GPU or a broken library is noticed, and handled, by the collector.
                if code_of(error) in UNSUPPORTED:
                    self._ask_again[uuid] = self._clock() + ASK_AGAIN_SECONDS
                return None
            finally:
                if self._timings is not None:
                    self._timings.add("pcie_throughput", time.perf_counter() - started)
