"""The host: RAPL's counters, the sensors, and a real reading of this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from enginehouse_telemetry.host import HostCollector, hottest
from enginehouse_telemetry.rapl import Rapl


def zone(root: Path, name: str, label: str, energy: int, wraps_at: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return folder / "energy_uj"


def test_power_is_energy_over_time_of_all_packages(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:2", "psys", 5)
    clock = iter([10.0, 12.0, 12.0])
    rapl = Rapl(tmp_path, lambda: next(clock))
    assert rapl.watts() is None
    first.write_text("201000000")  # 200 J
    second.write_text("99000000")  # wrapped: 100 J
    assert rapl.watts() == pytest.approx(150.0)
    assert rapl.watts() is None  # no time has passed


def test_no_power_where_it_cannot_be_read(tmp_path: Path) -> None:
    assert Rapl(tmp_path / "absent").watts() is None
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    rapl = Rapl(tmp_path)
    assert rapl.watts() is None
    counter.unlink()
    assert rapl.watts() is None
    counter.write_text("7")
    assert rapl.watts() is None  # begins anew


def test_the_packages_temperature_comes_first() -> None:
    def sensor(label: str, current: float | None) -> SimpleNamespace:
        return SimpleNamespace(label=label, current=current)

    cores = [sensor("Core 0", 71.0), sensor("Core 1", 75.0)]
    assert hottest([sensor("Package id 0", 70.0), sensor("Package id 1", 72.0), *cores]) == 72.0
    assert hottest([*cores, sensor("Core 2", None)]) == 75.0
    assert hottest([]) is None


def test_this_machine() -> None:
    host = HostCollector()
    first, second = host.read(), host.read()
    assert first.cpu_utilization_percent is None and first.cpu_utilization_percent_per_core == ()
    assert second.cpu_utilization_percent is not None and 0 <= second.cpu_utilization_percent <= 100
    assert len(second.cpu_utilization_percent_per_core) >= 1
    assert second.memory_total_bytes and second.memory_used_bytes and second.memory_available_bytes
    assert second.memory_used_bytes < second.memory_total_bytes
    assert second.load_average_1m is not None and second.swap_used_bytes is not None
