"""What a device did in the windows of a row, from telemetry's samples. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

# Words in NVML's names of clock event reasons that mean: slower for heat or for power.
_THROTTLING = ("thermal", "power", "slowdown", "brake")
Interval = tuple[float, float]
Stamped = tuple[float, Mapping[str, Any]]


@dataclass(frozen=True)
class DeviceMeans:
    """Means over some time; None is what the device did not report. Watts, percent, degrees Celsius, MHz.

    `throttled` is None when no sample says why clocks were held back or that nothing did; `other_processes` counts
    those on the GPU that are not the benchmark's.
    """

    power_w: float | None = None
    gpu_utilization: float | None = None
    memory_utilization: float | None = None
    temperature_c: float | None = None
    clocks_mhz: float | None = None
    throttled: bool | None = None
    throttle_reasons: tuple[str, ...] | None = None
    other_processes: int | None = None


def device_means(
    device: str, stamped: Sequence[Stamped], intervals: Sequence[Interval], own: frozenset[int] = frozenset()
) -> DeviceMeans:
    """Means of samples (with their times) that lie in the intervals, for "cpu", "gpu:N", "gpu:all" or "gpu".

    Args:
        own: process ids of the benchmark on the device.
    """
    if device == "cpu":
        hosts = [sample.get("host", {}) for _, sample in stamped]
        return DeviceMeans(
            power_w=_mean(host.get("cpu_power_watts") for host in hosts),
            temperature_c=_mean(host.get("cpu_temperature_celsius") for host in hosts),
            clocks_mhz=_mean(host.get("cpu_frequency_mhz") for host in hosts),
        )
    by_gpu: dict[int, list[Stamped]] = {}
    for at, sample in stamped:
        for gpu in sample.get("gpus", ()):
            by_gpu.setdefault(gpu.get("index", 0), []).append((at, gpu))
    if device in ("gpu", "gpu:all"):  # served: whichever the service chose, so all
        return _together([gpu_means(found, intervals, own) for found in by_gpu.values()])
    return gpu_means(by_gpu.get(int(device[4:]), []), intervals, own)


def gpu_means(
    stamped: Sequence[Stamped], intervals: Sequence[Interval] = (), own: frozenset[int] = frozenset()
) -> DeviceMeans:
    """Means of one GPU's samples."""
    gpus = [gpu for _, gpu in stamped]
    known = any("throttle_reasons_mask" in gpu for gpu in gpus)
    reasons = tuple(sorted({str(reason) for gpu in gpus for reason in gpu.get("throttle_reasons", ())}))
    throttled = any(word in reason.lower() for reason in reasons for word in _THROTTLING)
    return DeviceMeans(
        power_w=_power(stamped, intervals),
        gpu_utilization=_mean(gpu.get("utilization_gpu_percent") for gpu in gpus),
        memory_utilization=_mean(gpu.get("utilization_memory_percent") for gpu in gpus),
        temperature_c=_mean(gpu.get("temperature_gpu_celsius") for gpu in gpus),
        clocks_mhz=_mean(gpu.get("clock_sm_mhz") for gpu in gpus),
        throttled=throttled if known or reasons else None,
        throttle_reasons=reasons if known or reasons else None,
        other_processes=other_processes([gpu["processes"] for gpu in gpus if "processes" in gpu], own),
    )


def other_processes(samples: Sequence[Sequence[Mapping[str, Any]]], own: frozenset[int]) -> int | None:
    """How many processes of others were on a GPU; None where the driver lists none at all, as in some containers.

    In a container the driver may name processes by the host's numbers. Where none of ours is recognised, what is more
    than ours are others.
    """
    seen = [{int(process["pid"]) for process in processes} for processes in samples if processes]
    if not seen:
        return None
    everything = set().union(*seen)
    if everything & own or not own:
        return len(everything - own)
    return max(0, max(len(pids) for pids in seen) - len(own))


def _power(stamped: Sequence[Stamped], intervals: Sequence[Interval]) -> float | None:
    """Mean watts: from the energy counter within each interval where there is one, for a driver's "power draw" may be
    the mean of a second, in which another lane ran; else from the samples."""
    joules = seconds = 0.0
    for low, high in intervals:
        inside = [
            (at, gpu["energy_millijoules"]) for at, gpu in stamped if low <= at <= high and "energy_millijoules" in gpu
        ]
        if len(inside) > 1 and inside[-1][0] > inside[0][0]:
            joules += (inside[-1][1] - inside[0][1]) / 1e3
            seconds += inside[-1][0] - inside[0][0]
    if seconds > 0 and joules > 0:
        return joules / seconds
    instant = _mean(gpu.get("power_draw_instant_watts") for _, gpu in stamped)
    return _mean(gpu.get("power_draw_watts") for _, gpu in stamped) if instant is None else instant


def _together(gpus: Sequence[DeviceMeans]) -> DeviceMeans:
    """Several GPUs that worked at once: power is their sum, the temperature the highest, others' processes all."""
    if len(gpus) < 2:
        return gpus[0] if gpus else DeviceMeans()
    powers = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
    throttled = [gpu.throttled for gpu in gpus if gpu.throttled is not None]
    reasons = [gpu.throttle_reasons for gpu in gpus if gpu.throttle_reasons is not None]
    others = [gpu.other_processes for gpu in gpus if gpu.other_processes is not None]
    return dataclasses.replace(
        DeviceMeans(
            gpu_utilization=_mean(gpu.gpu_utilization for gpu in gpus),
            memory_utilization=_mean(gpu.memory_utilization for gpu in gpus),
            clocks_mhz=_mean(gpu.clocks_mhz for gpu in gpus),
        ),
        power_w=sum(powers) if len(powers) == len(gpus) else None,
        temperature_c=max((gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None), default=None),
        throttled=any(throttled) if throttled else None,
        throttle_reasons=tuple(sorted({reason for found in reasons for reason in found})) if reasons else None,
        other_processes=sum(others) if others else None,
    )


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return fmean(numbers) if numbers else None
