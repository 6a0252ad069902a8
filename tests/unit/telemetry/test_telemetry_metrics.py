"""Prometheus: DCGM's names and units; what is absent has no line."""

from __future__ import annotations

import re

import pytest
from enginehouse_telemetry.history import History
from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.metrics import GPU_METRICS, HOST_METRICS, NodeMetrics
from enginehouse_telemetry.readings import GpuReading, HostReading
from enginehouse_telemetry.sampler import Sampler
from enginehouse_telemetry.streams import Streams
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def scrape(gpus, make_reading):  # type: ignore[no-untyped-def]
    clock = Clock()
    hub = Hub("projects/default/nodes/n", History(60, 1 << 20), Streams(1.0, lambda _: None), clock)
    registry = CollectorRegistry()
    registry.register(NodeMetrics(hub, gpus, Sampler(None, lambda _: None, 1.0), "n"))  # type: ignore[arg-type]

    def text(*, publish: bool = True, later: float = 0.0) -> str:
        if publish:
            hub.publish(make_reading())
        clock.now += later
        return generate_latest(registry).decode()

    return text


async def test_names_labels_and_units(scrape) -> None:  # type: ignore[no-untyped-def]
    text = scrape()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (used,) = families["DCGM_FI_DEV_FB_USED"].samples
    assert used.value == 1024
    assert used.labels == {
        "gpu": "0",
        "UUID": "GPU-0",
        "pci_bus_id": "00000000:3B:00.0",
        "device": "nvidia0",
        "modelName": "NVIDIA H200",
        "Hostname": "n",
        "DCGM_FI_DRIVER_VERSION": "550.54.15",
    }
    assert re.search(r"^DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION\{.*\} 1.23456789e\+08$", text, re.M)
    assert families["enginehouse_host_cpu_utilization_ratio"].samples[0].value == 0.125
    assert [sample.value for sample in families["enginehouse_gpu_lost"].samples] == [0.0, 1.0]


async def test_absent_is_absent(scrape) -> None:  # type: ignore[no-untyped-def]
    text = scrape()
    assert "DCGM_FI_DEV_FAN_SPEED" not in text and "enginehouse_host_cpu_power_watts" not in text
    assert all('gpu="1"' not in line for line in text.splitlines() if line.startswith("DCGM_"))


async def test_what_is_stale_is_not_repeated(scrape) -> None:  # type: ignore[no-untyped-def]
    assert "DCGM_" not in scrape(publish=False)
    text = scrape(later=100.0)
    assert "DCGM_" not in text and "enginehouse_telemetry_stalled 1.0" in text


def test_every_metric_is_a_field() -> None:
    assert {metric.field for metric in GPU_METRICS} <= set(GpuReading.__dataclass_fields__)
    assert {field for _, field, _, _ in HOST_METRICS} <= set(HostReading.__dataclass_fields__)
    assert len({metric.name for metric in GPU_METRICS}) == len(GPU_METRICS)
