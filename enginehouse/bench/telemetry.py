"""Telemetry beside a benchmark: recorded to a file, and averaged over the windows of a row."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from enginehouse.bench.device_means import DeviceMeans, Interval, device_means
from enginehouse.bench.rows import present
from enginehouse.bench.seams import TelemetrySource
from enginehouse.bench.store import append_lines, read_lines, replace_text
from enginehouse.errors import EnginehouseError

_KEPT_IN_MEMORY = 40_000
# Rows need every sample, plots over hours do not: the file gets one in so many seconds.
_STORED_SECONDS = 0.5


class TelemetryRecorder:
    """Records samples in the background from `start` to `stop`. Failing telemetry never fails a benchmark."""

    def __init__(self, source: TelemetrySource | None, path: Path, period_seconds: float = 0.1) -> None:
        self._source, self._path, self._period = source, path, period_seconds
        self._recent: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=_KEPT_IN_MEMORY)
        self._task: asyncio.Task[None] | None = None
        self.missing: str | None = None if source is not None else "no telemetry service was given"

    async def start(self) -> None:
        if self._source is not None:
            self._task = asyncio.create_task(self._record(self._source), name="telemetry recorder")

    async def stop(self) -> None:
        """Stop; what was sampled is on disk then."""
        if self._task is not None:
            self._task.cancel()
            (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(outcome, Exception):
                self.missing = f"telemetry: {type(outcome).__name__}: {outcome}"
            self._task = None

    async def _record(self, source: TelemetrySource) -> None:
        pending: list[Mapping[str, Any]] = []
        stored = 0.0
        try:
            async for sample in source.samples(self._period):
                at = timestamp(str(sample["time"]))
                self._recent.append((at, sample))
                if at - stored < _STORED_SECONDS:
                    continue
                stored = at
                pending.append(present(dict(sample)))
                if len(pending) >= 4:
                    append_lines(self._path, pending)
                    pending.clear()
            self.missing = "the telemetry stream ended before the run did"
        except EnginehouseError as error:
            self.missing = f"telemetry: {error.message}"
        finally:
            append_lines(self._path, pending)

    def means(self, device: str, intervals: Iterable[Interval], own: frozenset[int] = frozenset()) -> DeviceMeans:
        """What the device ("cpu", "gpu:N" or "gpu:all") did in the intervals (seconds since the epoch). `own` are the
        benchmark's processes on it."""
        spans = list(intervals)
        stamped = [(at, sample) for at, sample in self._recent if any(low <= at <= high for low, high in spans)]
        return device_means(device, stamped, spans, own)


def timestamp(text: str) -> float:
    """Seconds since the epoch of an ISO 8601 time such as 2025-01-31T12:00:00.123456Z.

    Raises:
        ValueError: it is none.
    """
    head, dot, rest = text.replace("Z", "+00:00").partition(".")
    if dot:
        digits = rest[: next((i for i, c in enumerate(rest) if not c.isdigit()), len(rest))]
        head += "." + digits[:6].ljust(6, "0") + rest[len(digits) :]
    return datetime.fromisoformat(head).timestamp()


# The paper's fields (section 6) by our names, and where a GPU sample has them.
CSV_GPU_FIELDS = {
    "pstate": "pstate",
    "utilization.gpu": "utilization_gpu_percent",
    "utilization.memory": "utilization_memory_percent",
    "memory.total": "memory_total_bytes",
    "memory.free": "memory_free_bytes",
    "memory.used": "memory_used_bytes",
    "power.draw": "power_draw_watts",
    "temperature.gpu": "temperature_gpu_celsius",
    "pcie.link.gen.max": "pcie_generation_max",
    "pcie.link.gen.current": "pcie_generation_current",
    "clocks.sm": "clock_sm_mhz",
}
CSV_HOST_FIELDS = {
    "host.cpu.utilization": "cpu_utilization_percent",
    "host.memory.used": "memory_used_bytes",
    "host.cpu.temperature": "cpu_temperature_celsius",
    "host.cpu.frequency": "cpu_frequency_mhz",
    "host.cpu.power": "cpu_power_watts",
}


def telemetry_csv(samples: Iterable[Mapping[str, Any]]) -> str:
    """Samples as CSV: a line for each GPU and sample (one without an index where there is no GPU). Bytes, watts,
    degrees Celsius,
    MHz and percent; a cell is empty where nothing was reported."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["timestamp", "node", "index", *CSV_GPU_FIELDS, *CSV_HOST_FIELDS])
    for sample in samples:
        host = sample.get("host", {})
        host_cells = [host.get(name, "") for name in CSV_HOST_FIELDS.values()]
        for gpu in sample.get("gpus") or [None]:
            cells = ["" if gpu is None else gpu.get(name, "") for name in CSV_GPU_FIELDS.values()]
            index = "" if gpu is None else gpu.get("index", 0)
            writer.writerow([sample.get("time", ""), sample.get("node", ""), index, *cells, *host_cells])
    return out.getvalue()


def write_telemetry_csv(source: Path, target: Path) -> None:
    """Write the CSV of a telemetry file, when there is one with samples."""
    samples = read_lines(source)
    if samples:
        replace_text(target, telemetry_csv(samples))
