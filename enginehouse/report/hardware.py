"""What the devices did during calibration, builds and inference: means of telemetry's samples. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.device_means import DeviceMeans, gpu_means
from enginehouse.bench.telemetry import timestamp
from enginehouse.report.data import Results

_KINDS = {"calibrate": "calibration", "build": "building engines"}
Interval = tuple[float, float]


@dataclass(frozen=True)
class HardwareLine:
    """Means of one device ("CPU", "GPU 0") while something was done. `cpu_utilization` is the CPU's, percent."""

    what: str
    device: str
    samples: int
    means: DeviceMeans
    cpu_utilization: float | None = None


def hardware_lines(results: Results) -> tuple[HardwareLine, ...]:
    """For calibration, builds, and the windows of each mode: what the GPUs did, or for modes of the CPU the host."""
    stamped = [(timestamp(str(sample["time"])), sample) for sample in results.samples]
    times = [at for at, _ in stamped]
    indices = sorted({gpu.get("index", 0) for _, sample in stamped for gpu in sample.get("gpus", ())})
    found: list[HardwareLine] = []
    for (what, device), spans in _spans(results).items():
        inside = []
        for low, high in spans:
            inside += stamped[bisect_left(times, low) : bisect_right(times, high)]
        if not inside:
            continue
        if device in ("cpu", "any"):
            found.append(_host(what, inside))
        for index in indices:
            if device in ("gpu", "gpu:all", "any", f"gpu:{index}"):
                gpus = [
                    (at, gpu) for at, sample in inside for gpu in sample.get("gpus", ()) if gpu.get("index", 0) == index
                ]
                found.append(HardwareLine(what, f"GPU {index}", len(gpus), gpu_means(gpus, spans)))
    return tuple(found)


def _spans(results: Results) -> dict[tuple[str, str], list[Interval]]:
    """When what was done, by the device that did it; calibration may run anywhere."""
    spans: dict[tuple[str, str], list[Interval]] = {}
    for phase in results.phases:
        if phase.get("kind") in _KINDS:
            spans.setdefault((_KINDS[str(phase["kind"])], "any"), []).append(_interval(phase))
    for mode in results.modes:
        for window in results.windows:
            if window.get("mode") == mode:
                spans.setdefault((f"inference, {mode}", str(window.get("device"))), []).append(_interval(window))
    return spans


def _interval(value: Mapping[str, Any]) -> Interval:
    return timestamp(str(value["start"])), timestamp(str(value["end"]))


def _host(what: str, stamped: Sequence[tuple[float, Mapping[str, Any]]]) -> HardwareLine:
    hosts = [sample.get("host", {}) for _, sample in stamped]

    def mean(name: str) -> float | None:
        values = [float(host[name]) for host in hosts if name in host]
        return sum(values) / len(values) if values else None

    means = DeviceMeans(power_w=mean("cpu_power_watts"), temperature_c=mean("cpu_temperature_celsius"))
    return HardwareLine(what, "CPU", len(hosts), means, mean("cpu_utilization_percent"))
