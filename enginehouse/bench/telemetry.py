"""Telemetry beside a benchmark: recorded to a file, and averaged over the windows of a row."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from enginehouse.bench.rows import present
from enginehouse.bench.seams import TelemetrySource
from enginehouse.bench.store import append_lines, read_lines, replace_text
from enginehouse.errors import EnginehouseError

_KEPT_IN_MEMORY = 20_000
_THROTTLING = ("thermal", "power", "slowdown", "brake")
Interval = tuple[float, float]


@dataclass(frozen=True)
class DeviceMeans:
    """Means over some time; None is what the device did not report. Watts, percent, degrees Celsius, MHz."""

    power_w: float | None = None
    gpu_utilization: float | None = None
    temperature_c: float | None = None
    clocks_mhz: float | None = None
    throttled: bool | None = None


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
        try:
            async for sample in source.samples(self._period):
                self._recent.append((timestamp(str(sample["time"])), sample))
                pending.append(present(dict(sample)))
                if len(pending) >= max(1, round(1 / self._period)):
                    append_lines(self._path, pending)
                    pending.clear()
            self.missing = "the telemetry stream ended before the run did"
        except EnginehouseError as error:
            self.missing = f"telemetry: {error.message}"
        finally:
            append_lines(self._path, pending)

    def means(self, device: str, intervals: Iterable[Interval]) -> DeviceMeans:
        """What the device ("cpu" or "gpu:N") did in the intervals (seconds since the epoch)."""
        spans = list(intervals)
        samples = [sample for at, sample in self._recent if any(low <= at <= high for low, high in spans)]
        if device == "cpu":
            return DeviceMeans(power_w=_mean(host.get("cpu_power_watts") for host in _hosts(samples)))
        if not device.startswith("gpu:"):
            return DeviceMeans()
        gpus = [gpu for sample in samples for gpu in sample.get("gpus", ()) if gpu.get("index", 0) == int(device[4:])]
        return gpu_means(gpus)


def gpu_means(gpus: Sequence[Mapping[str, Any]]) -> DeviceMeans:
    """Means of GPU samples. `throttled` is None when no sample says why clocks were held back or that nothing did."""
    masks = [gpu["throttle_reasons_mask"] for gpu in gpus if "throttle_reasons_mask" in gpu]
    reasons = {str(reason).lower() for gpu in gpus for reason in gpu.get("throttle_reasons", ())}
    throttled = any(word in reason for reason in reasons for word in _THROTTLING)
    return DeviceMeans(
        power_w=_mean(gpu.get("power_draw_watts") for gpu in gpus),
        gpu_utilization=_mean(gpu.get("utilization_gpu_percent") for gpu in gpus),
        temperature_c=_mean(gpu.get("temperature_gpu_celsius") for gpu in gpus),
        clocks_mhz=_mean(gpu.get("clock_sm_mhz") for gpu in gpus),
        throttled=throttled if masks or reasons else None,
    )


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


def _hosts(samples: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (sample.get("host", {}) for sample in samples)


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return fmean(numbers) if numbers else None
