"""Samples the GPU while engines run: `python power.py --out samples.jsonl`, with a Python that has nvidia-ml-py.

The readings are those of the telemetry service's collector; where it cannot be imported (it needs psutil), NVML's or
nvidia-smi's. A process of its own, so that the one that measures keeps its interpreter to itself. Times are of the
monotonic clock, which all processes share. The other half of this module is for the process that measures: what a
point's windows took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# A window's first moment shows the power of what ran before it.
SETTLING_SECONDS = 0.1
Window = tuple[float, float]
_QUERY = "power.draw.instant,clocks.sm,clocks.mem,temperature.gpu,utilization.gpu,clocks_event_reasons.active"
# Bits of the reasons that lower clocks below what was asked for: power cap, slowdowns of hardware and for heat.
_SLOWDOWN = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
# "Idle" and clocks that someone set are no throttling.
_NO_THROTTLING = {"gpu_idle", "applications_clocks_setting", "none"}


def collector() -> Callable[[], dict[str, Any]]:
    """A function that reads GPU 0 through the telemetry service's collector."""
    sys.path[:0] = [str(ROOT / "services" / "telemetry"), str(ROOT)]
    from enginehouse_telemetry.nvml_collector import NvmlCollector

    gpus = NvmlCollector(detail_period=3600.0)

    def read() -> dict[str, Any]:
        readings = gpus.read()
        if not readings:
            raise OSError(gpus.message)
        gpu = readings[0]
        power = gpu.power_draw_instant_watts if gpu.power_draw_instant_watts is not None else gpu.power_draw_watts
        return {
            "source": "telemetry",
            "power_w": power,
            "sm_mhz": gpu.clock_sm_mhz,
            "memory_mhz": gpu.clock_memory_mhz,
            "temperature_c": gpu.temperature_gpu_celsius,
            "utilization": gpu.utilization_gpu_percent,
            "reasons": [reason for reason in gpu.throttle_reasons if reason.lower() not in _NO_THROTTLING],
            "energy_mj": gpu.energy_millijoules,
        }

    read()
    return read


def nvml() -> Callable[[], dict[str, Any]]:
    """A function that asks NVML: as the collector does, without psutil."""
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    def read() -> dict[str, Any]:
        power = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
        known = power.nvmlReturn == pynvml.NVML_SUCCESS
        mask = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        return {
            "source": "nvml",
            "power_w": (power.value.uiVal if known else pynvml.nvmlDeviceGetPowerUsage(gpu)) / 1e3,
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "temperature_c": pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "utilization": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "reasons": [hex(mask)] if mask & _SLOWDOWN else [],
        }

    read()
    return read


def nvidia_smi() -> Callable[[], dict[str, Any]]:
    """A function that asks nvidia-smi."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]

    def read() -> dict[str, Any]:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        power, sm, memory, heat, used, mask = (part.strip() for part in text.strip().split(","))
        reasons = [mask] if mask.startswith("0x") and int(mask, 16) & _SLOWDOWN else []
        return {
            "source": "nvidia-smi",
            "power_w": float(power),
            "sm_mhz": float(sm),
            "memory_mhz": float(memory),
            "temperature_c": float(heat),
            "utilization": float(used),
            "reasons": reasons,
        }

    read()
    return read


def first_that_works() -> Callable[[], dict[str, Any]]:
    """The collector, else NVML, else nvidia-smi; says on standard error why not.

    Raises:
        SystemExit: neither works.
    """
    for name, make in (("the telemetry collector", collector), ("NVML", nvml), ("nvidia-smi", nvidia_smi)):
        try:
            return make()
        except Exception as error:
            print(f"power: {name} does not work: {error!r}", file=sys.stderr, flush=True)
    raise SystemExit("power: nothing reads the GPU's power")


def sample(read: Callable[[], dict[str, Any]], period: float) -> Iterator[dict[str, Any]]:
    """Readings every `period` seconds, without end."""
    due = time.monotonic()
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        begin = time.monotonic()
        values = read()
        moment = (begin + time.monotonic()) / 2
        yield {"monotonic": round(moment, 4), **{name: value for name, value in values.items() if value is not None}}
        due = max(due + period, time.monotonic())


def during(samples: Sequence[Mapping[str, Any]], windows: Sequence[Window]) -> list[Mapping[str, Any]]:
    """The samples taken within the windows, their first moments aside."""
    return [s for s in samples if any(begin + SETTLING_SECONDS <= s["monotonic"] <= end for begin, end in windows)]


def summary(samples: Sequence[Mapping[str, Any]], windows: Sequence[Window]) -> dict[str, Any]:
    """A row's fields of telemetry: means over the windows' samples; empty when there are none."""
    inside = during(samples, windows)
    found: dict[str, Any] = {}
    for name, key in (("power_w", "power_w"), ("temperature_c", "temperature_c"), ("gpu_utilization", "utilization")):
        values = [s[key] for s in inside if key in s]
        if values:
            found[name] = round(statistics.fmean(values), 1)
    clocks = {}
    for name, key in (("sm", "sm_mhz"), ("memory", "memory_mhz")):
        values = [s[key] for s in inside if key in s]
        if values:
            clocks[name] = round(statistics.fmean(values))
    if clocks:
        found["clocks_mhz"] = clocks
    if inside:
        reasons = sorted({reason for s in inside for reason in s.get("reasons", ())})
        found["throttled"] = bool(reasons)
        found["telemetry_samples"] = len(inside)
        if reasons:
            found["throttle_reasons"] = reasons
    return found


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--period", type=float, default=0.1)
    arguments = cli.parse_args()
    parent = os.getppid()
    with arguments.out.open("a", buffering=1) as file:
        for values in sample(first_that_works(), arguments.period):
            file.write(json.dumps(values) + "\n")
            if os.getppid() != parent:
                return  # whoever measured is gone


if __name__ == "__main__":
    main()
