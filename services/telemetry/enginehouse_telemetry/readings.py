"""What the collectors read: plain values that need neither protobuf nor NVML. None: the device does not report it.

Field names and units are those of `enginehouse/v1/telemetry.proto`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GpuIdentity:
    """What does not change while a GPU is present. `uuid` is empty when it was lost before it could be asked."""

    index: int
    uuid: str = ""
    product: str = ""
    serial: str | None = None
    pci_bus_id: str | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    vbios_version: str | None = None
    memory_total_bytes: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    power_limit_default_watts: float | None = None
    power_limit_min_watts: float | None = None
    power_limit_max_watts: float | None = None
    clock_graphics_max_mhz: int | None = None
    clock_sm_max_mhz: int | None = None
    clock_memory_max_mhz: int | None = None
    ecc_enabled: bool | None = None
    mig_enabled: bool | None = None
    persistence_enabled: bool | None = None
    compute_mode: str | None = None


@dataclass(frozen=True)
class ProcessReading:
    """A process that holds GPU memory. `kind` is "compute" or "graphics"."""

    pid: int
    kind: str
    name: str | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True)
class MigReading:
    """A MIG instance."""

    uuid: str
    product: str = ""
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. A lost one has no values."""

    uuid: str
    index: int
    lost: bool = False
    state_message: str = ""
    product: str = ""
    pstate: int | None = None
    utilization_gpu_percent: float | None = None
    utilization_memory_percent: float | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    power_draw_watts: float | None = None
    power_draw_instant_watts: float | None = None
    power_draw_average_watts: float | None = None
    power_limit_watts: float | None = None
    power_limit_enforced_watts: float | None = None
    temperature_gpu_celsius: float | None = None
    temperature_memory_celsius: float | None = None
    pcie_generation_current: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_current: int | None = None
    pcie_width_max: int | None = None
    pcie_tx_bytes_per_second: int | None = None
    pcie_rx_bytes_per_second: int | None = None
    pcie_replays: int | None = None
    clock_graphics_mhz: int | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    clock_video_mhz: int | None = None
    energy_millijoules: int | None = None
    throttle_reasons_mask: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    utilization_encoder_percent: float | None = None
    utilization_decoder_percent: float | None = None
    ecc_corrected_volatile: int | None = None
    ecc_uncorrected_volatile: int | None = None
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    fan_speed_percent: float | None = None
    processes: tuple[ProcessReading, ...] = ()
    mig_instances: tuple[MigReading, ...] = ()


@dataclass(frozen=True)
class HostReading:
    """The host at one moment; rates are over the time since the reading before."""

    cpu_utilization_percent: float | None = None
    cpu_utilization_percent_per_core: tuple[float, ...] = ()
    load_average_1m: float | None = None
    cpu_frequency_mhz: float | None = None
    cpu_temperature_celsius: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    cpu_power_watts: float | None = None


@dataclass(frozen=True)
class NodeReading:
    """Everything of a node at one moment.

    Attributes:
        time_ns: Unix time in nanoseconds.
        monotonic: seconds of the monotonic clock, for periods (the wall clock may be set back).
        sequence: rises by 1 with every reading.
    """

    time_ns: int
    monotonic: float
    sequence: int
    gpus: tuple[GpuReading, ...] = ()
    host: HostReading = field(default_factory=HostReading)


def as_mapping(reading: Any) -> dict[str, Any]:
    """The fields of a reading that have a value, nested readings included, ready for JSON."""
    values = ((f.name, getattr(reading, f.name)) for f in dataclasses.fields(reading))
    return {name: _plain(value) for name, value in values if value is not None and value != ()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_mapping(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
