"""Telemetry as series over time, for plots and their summary; only what the machine reported. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.telemetry import timestamp
from enginehouse.report.data import Results

MAX_POINTS = 1200


@dataclass(frozen=True)
class Series:
    """One curve: seconds since the run began, and values."""

    label: str
    seconds: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One quantity over time with a series for each device; `unit` names its axis. No series: `title` was not
    reported."""

    title: str
    unit: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Phase:
    """A marked stretch of the run, in seconds since it began. `kind` is as in `phases.jsonl`."""

    name: str
    kind: str
    start: float
    end: float


# Title, unit, field of a GPU sample, field of the host's sample, and what the field is divided by.
_PANELS: Sequence[tuple[str, str, str | None, str | None, float]] = (
    ("Utilization", "%", "utilization_gpu_percent", "cpu_utilization_percent", 1),
    ("Memory utilization", "%", "utilization_memory_percent", None, 1),
    ("Memory used", "GiB", "memory_used_bytes", "memory_used_bytes", 2**30),
    ("Temperature", "°C", "temperature_gpu_celsius", "cpu_temperature_celsius", 1),
    ("Power", "W", "power_draw_watts", "cpu_power_watts", 1),
)


def origin(results: Results) -> float | None:
    """When the run began, seconds since the epoch: its first sample or phase."""
    times = [timestamp(str(sample["time"])) for sample in results.samples[:1]]
    times += [timestamp(str(phase["start"])) for phase in results.phases[:1]]
    return min(times, default=None)


def panels(results: Results) -> tuple[Panel, ...]:
    """Utilization, memory, temperature and power, each with the devices that reported it."""
    start = origin(results)
    if start is None:
        return ()
    stamped = [(timestamp(str(sample["time"])) - start, sample) for sample in results.samples]
    indices = indices_of(results)
    found = []
    for title, unit, gpu_field, host_field, divisor in _PANELS:
        series = []
        if host_field is not None:
            host = _series("CPU" if title != "Memory used" else "host", stamped, _host_value(host_field), divisor)
            series.append(host)
        if gpu_field is not None:
            series += [_series(f"GPU {i}", stamped, _gpu_value(gpu_field, i), divisor) for i in indices]
        found.append(Panel(title, unit, tuple(one for one in series if one.values)))
    return tuple(found)


def indices_of(results: Results) -> list[int]:
    """Indices of the GPUs that telemetry saw."""
    return sorted({gpu.get("index", 0) for sample in results.samples for gpu in sample.get("gpus", ())})


def phases(results: Results) -> tuple[Phase, ...]:
    """The run's phases."""
    start = origin(results)
    if start is None:
        return ()
    return tuple(
        Phase(
            str(phase["name"]),
            str(phase.get("kind", "")),
            timestamp(str(phase["start"])) - start,
            timestamp(str(phase["end"])) - start,
        )
        for phase in results.phases
    )


def absent(results: Results) -> tuple[str, ...]:
    """In plain words, what this machine does not report."""
    left_out = (f"{results.left_out} rows without latencies",) if results.left_out else ()
    if not results.samples:
        return (
            *left_out,
            str(results.run.get("telemetry_missing") or "no telemetry was recorded"),
        )
    words = list(left_out)
    if not any(sample.get("gpus") for sample in results.samples):
        machines = [environment.get("machine", {}) for environment in results.environments.values()]
        reason = next(
            (machine["gpus"]["missing"] for machine in machines if machine.get("gpus", {}).get("missing")), None
        )
        words.append(reason or "no NVIDIA GPU was seen")
    for panel in panels(results):
        if panel.title == "Memory utilization" and not indices_of(results):
            continue  # a host has none
        if not panel.series:
            words.append(f"no {panel.title.lower()} was reported by any device")
        elif not panel.title.startswith("Memory") and "CPU" not in {one.label for one in panel.series}:
            words.append(f"no CPU {panel.title.lower()} was reported")
    return tuple(words)


def _series(
    label: str,
    stamped: Sequence[tuple[float, Mapping[str, Any]]],
    value: Callable[[Mapping[str, Any]], Any],
    divisor: float,
) -> Series:
    points = [(at, float(found) / divisor) for at, sample in stamped if (found := value(sample)) is not None]
    step = max(1, -(-len(points) // MAX_POINTS))
    means = [_mean(points[begin : begin + step]) for begin in range(0, len(points), step)]
    return Series(label, tuple(at for at, _ in means), tuple(found for _, found in means))


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(at for at, _ in points) / len(points), sum(value for _, value in points) / len(points)


def _host_value(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda sample: sample.get("host", {}).get(name)


def _gpu_value(name: str, index: int) -> Callable[[Mapping[str, Any]], Any]:
    return lambda sample: next((gpu.get(name) for gpu in sample.get("gpus", ()) if gpu.get("index", 0) == index), None)
