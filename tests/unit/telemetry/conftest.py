"""Samples, readings and collaborators for the telemetry tests."""

from __future__ import annotations

import pytest
from enginehouse_telemetry.nvml_collector import GpuStatus
from enginehouse_telemetry.readings import GpuIdentity, GpuReading, HostReading, NodeReading, ProcessReading

IDENTITY = GpuIdentity(
    index=0,
    uuid="GPU-0",
    product="NVIDIA H200",
    pci_bus_id="00000000:3B:00.0",
    compute_capability="9.0",
    driver_version="550.54.15",
    memory_total_bytes=150754820096,
    power_limit_default_watts=700.0,
    clock_sm_max_mhz=1980,
    ecc_enabled=True,
    mig_enabled=False,
)

BUSY = GpuReading(
    uuid="GPU-0",
    index=0,
    pstate=0,
    utilization_gpu_percent=45.0,
    utilization_memory_percent=0.0,
    memory_total_bytes=150754820096,
    memory_free_bytes=149 << 30,
    memory_used_bytes=1 << 30,
    power_draw_watts=70.125,
    temperature_gpu_celsius=34.0,
    pcie_generation_current=5,
    pcie_generation_max=5,
    clock_sm_mhz=1980,
    throttle_reasons_mask=5,
    throttle_reasons=("gpu_idle", "sw_power_cap"),
    energy_millijoules=123456789,
    processes=(ProcessReading(pid=7, kind="compute", name="python", memory_used_bytes=1 << 20),),
)

LOST = GpuReading(uuid="GPU-1", index=1, lost=True, state_message="GPU is lost")


def reading(sequence: int = 1, *, at: float | None = None, gpus: tuple[GpuReading, ...] = (BUSY, LOST)) -> NodeReading:
    """A reading taken at `at` seconds (one a second when absent)."""
    moment = float(sequence) if at is None else at
    time_ns = 1_795_452_432_345_000_000 + int(moment * 1e9)
    return NodeReading(
        time_ns, moment, sequence, gpus, HostReading(cpu_utilization_percent=12.5, memory_total_bytes=64)
    )


class FakeGpus:
    """GPUs without NVML."""

    def __init__(self) -> None:
        self.message = ""
        self.statuses: tuple[GpuStatus, ...] = (
            GpuStatus(IDENTITY, False, ""),
            GpuStatus(GpuIdentity(index=1, uuid="GPU-1", product="NVIDIA H200"), True, "GPU is lost"),
        )

    def read(self) -> tuple[GpuReading, ...]:
        return (BUSY, LOST)

    def close(self) -> None:
        return None


@pytest.fixture
def gpus() -> FakeGpus:
    return FakeGpus()


@pytest.fixture
def make_reading():  # type: ignore[no-untyped-def]
    return reading
