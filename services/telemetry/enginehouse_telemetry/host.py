"""The host: CPU, memory, load, frequency, temperature and power."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

from enginehouse_telemetry.rapl import Rapl
from enginehouse_telemetry.readings import HostReading

# Drivers of CPU sensors, and the label of the reading that stands for the whole package where there is one.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
_PACKAGE_LABELS = ("Package", "Tdie", "Tctl")


class HostCollector:
    """Reads the host. One thread calls it.

    Frequency and temperature are files of each core: they are read every `detail_period` seconds, the rest every time.
    """

    def __init__(
        self,
        *,
        detail_period: float = 1.0,
        rapl: Rapl | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._detail_period, self._clock = detail_period, clock
        self._rapl = rapl or Rapl(clock=clock)
        self._primed = False
        self._detail_due = clock()
        self._frequency: float | None = None
        self._temperature: float | None = None

    def read(self) -> HostReading:
        """A reading. The first has no utilization and no power: both are over the time since the one before."""
        if self._clock() >= self._detail_due:
            self._detail_due = self._clock() + self._detail_period
            self._frequency, self._temperature = _frequency(), _temperature()
        per_core = psutil.cpu_percent(percpu=True)
        primed, self._primed = self._primed, True
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return HostReading(
            cpu_utilization_percent=statistics.fmean(per_core) if primed and per_core else None,
            cpu_utilization_percent_per_core=tuple(per_core) if primed else (),
            load_average_1m=psutil.getloadavg()[0],
            cpu_frequency_mhz=self._frequency,
            cpu_temperature_celsius=self._temperature,
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            memory_available_bytes=memory.available,
            swap_used_bytes=swap.used,
            cpu_power_watts=self._rapl.watts(),
        )


def _frequency() -> float | None:
    """Mean over the cores, in MHz."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return float(frequency.current) if frequency is not None and frequency.current else None


def _temperature() -> float | None:
    """The hottest package, in degrees Celsius."""
    try:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    except (OSError, RuntimeError):
        return None
    for driver in _SENSORS:
        if readings := sensors.get(driver):
            return hottest(readings)
    return None


def hottest(readings: Iterable[Any]) -> float | None:
    """The highest of the packages' temperatures, of all when none is a package's."""
    known = [reading for reading in readings if reading.current is not None]
    packages = [reading for reading in known if reading.label.startswith(_PACKAGE_LABELS)]
    return max((float(reading.current) for reading in packages or known), default=None)
