from __future__ import annotations

from typing import Any

import pytest

from enginehouse.bench.device_means import DeviceMeans, device_means, gpu_means, other_processes


def stamped(*gpus: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    return [(float(at), gpu) for at, gpu in enumerate(gpus)]


def test_throttling_is_said_only_when_it_is_known() -> None:
    assert gpu_means(stamped({"power_draw_watts": 1.0})).throttled is None
    quiet = gpu_means(stamped({"throttle_reasons_mask": 0}))
    assert quiet.throttled is False and quiet.throttle_reasons == ()
    hot = gpu_means(stamped({"throttle_reasons_mask": 32, "throttle_reasons": ["sw_thermal_slowdown"]}))
    assert hot.throttled is True and hot.throttle_reasons == ("sw_thermal_slowdown",)
    assert gpu_means(stamped({"throttle_reasons_mask": 1, "throttle_reasons": ["gpu_idle"]})).throttled is False


def test_power_is_that_of_the_energy_counter_within_the_windows() -> None:
    # 100 W in the two windows, 300 W between them; "power draw" still shows the second before.
    energies = (0, 100, 400, 700, 800)
    samples = stamped(*({"energy_millijoules": 1000 * e, "power_draw_watts": 999.0} for e in energies))
    assert gpu_means(samples, [(0, 1), (3, 4)]).power_w == pytest.approx(100)
    assert gpu_means(samples, [(0, 0.5)]).power_w == 999, "no two readings in a window"
    instant = stamped({"power_draw_watts": 999.0, "power_draw_instant_watts": 50.0})
    assert gpu_means(instant, [(0, 1)]).power_w == 50


def test_processes_of_others() -> None:
    ours, theirs = {"pid": 7}, {"pid": 8}
    assert other_processes([], frozenset({7})) is None
    assert other_processes([[ours], [ours]], frozenset({7})) == 0
    assert other_processes([[ours], [ours, theirs]], frozenset({7})) == 1
    # In a container: other numbers, as many as ours.
    assert other_processes([[theirs]], frozenset({7})) == 0
    assert other_processes([[theirs, {"pid": 9}]], frozenset({7})) == 1


def test_several_gpus_at_once() -> None:
    sample = {"gpus": [
        {"index": 0, "power_draw_watts": 100.0, "temperature_gpu_celsius": 50.0, "clock_sm_mhz": 1000},
        {"index": 1, "power_draw_watts": 50.0, "temperature_gpu_celsius": 60.0, "clock_sm_mhz": 2000,
         "throttle_reasons_mask": 4, "throttle_reasons": ["sw_power_cap"]},
    ]}  # fmt: skip
    both = device_means("gpu:all", [(0.5, sample)], [(0, 1)])
    assert (both.power_w, both.temperature_c, both.clocks_mhz, both.throttled) == (150, 60, 1500, True)
    assert device_means("gpu:1", [(0.5, sample)], [(0, 1)]).power_w == 50
    assert device_means("gpu:2", [(0.5, sample)], [(0, 1)]) == DeviceMeans()


def test_a_cpu_has_clocks_and_power_where_the_host_reports_them() -> None:
    host = {"host": {"cpu_power_watts": 80.0, "cpu_frequency_mhz": 2500.0}}
    means = device_means("cpu", [(0.5, host)], [(0, 1)])
    assert (means.power_w, means.clocks_mhz, means.temperature_c) == (80, 2500, None)
