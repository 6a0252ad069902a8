"""What the GPUs and the host do. None is not reported, never 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from enginehouse.client.values.convert import enum_name, time_or_none, timestamp
from enginehouse.v1 import telemetry_pb2 as pb

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class GpuDevice:
    """What does not change while a GPU is present. `state` is "ok" or "lost"."""

    name: str
    index: int
    uuid: str
    product: str
    state: str
    state_message: str = ""
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

    @classmethod
    def from_proto(cls, message: pb.GpuDevice) -> GpuDevice:
        return _plain(cls, message, state=_state(message.state))

    def to_proto(self) -> pb.GpuDevice:
        """The message again."""
        return _message(pb.GpuDevice, self, state=_state_value(self.state))


@dataclass(frozen=True)
class DeviceList:
    """The GPUs, and why there are none where there are none."""

    devices: tuple[GpuDevice, ...]
    message: str = ""

    def __iter__(self) -> Iterator[GpuDevice]:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses a GPU. `kind` is "compute" or "graphics"."""

    pid: int
    kind: str
    name: str | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True)
class MigInstance:
    """A part of a GPU with memory and processors of its own."""

    uuid: str
    product: str = ""
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True)
class GpuAllocation:
    """A container that holds a GPU or a part of one, as the kubelet says.

    `device` is the device plugin's name for it, `mig_uuid` its MIG instance where it holds one, `replica` which one it
    holds of a time-sliced GPU. `shared`: others may use the GPU too; what is measured is not this container's alone.
    """

    namespace: str
    pod: str
    container: str
    resource: str = ""
    device: str = ""
    mig_uuid: str = ""
    replica: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class GpuSample:
    """A GPU at one moment. Units are in the names; utilizations are percent of the driver's last sample period."""

    uuid: str
    index: int
    state: str
    state_message: str = ""
    pstate: int | None = None
    utilization_gpu_percent: float | None = None
    utilization_memory_percent: float | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_draw_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_gpu_celsius: float | None = None
    temperature_memory_celsius: float | None = None
    pcie_generation_current: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_current: int | None = None
    pcie_width_max: int | None = None
    pcie_tx_bytes_per_second: int | None = None
    pcie_rx_bytes_per_second: int | None = None
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
    power_draw_instant_watts: float | None = None
    power_draw_average_watts: float | None = None
    power_limit_enforced_watts: float | None = None
    memory_reserved_bytes: int | None = None
    pcie_replays: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    product: str = ""
    mig_instances: tuple[MigInstance, ...] = ()
    allocations: tuple[GpuAllocation, ...] = ()

    @classmethod
    def from_proto(cls, message: pb.GpuSample) -> GpuSample:
        return _plain(
            cls,
            message,
            state=_state(message.state),
            processes=tuple(_plain(GpuProcess, process) for process in message.processes),
            mig_instances=tuple(_plain(MigInstance, instance) for instance in message.mig_instances),
            allocations=tuple(_plain(GpuAllocation, allocation) for allocation in message.allocations),
        )

    def to_proto(self) -> pb.GpuSample:
        """The message again."""
        return _message(
            pb.GpuSample,
            self,
            state=_state_value(self.state),
            processes=[_message(pb.GpuProcess, process) for process in self.processes],
            mig_instances=[_message(pb.MigInstance, instance) for instance in self.mig_instances],
            allocations=[_message(pb.GpuAllocation, allocation) for allocation in self.allocations],
        )


@dataclass(frozen=True)
class HostSample:
    """The host at one moment; its CPU utilization is over the time since the sample before."""

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

    @classmethod
    def from_proto(cls, message: pb.HostSample) -> HostSample:
        return _plain(cls, message)


@dataclass(frozen=True)
class Sample:
    """A node at one moment. `sequence` rises by 1 with every sample that the agent takes.

    `skipped` is how many samples a stream left out before this one because its reader was slow.
    `unmatched_allocations` are of NVIDIA devices that are none of `gpus`; `allocation_message` says why allocations are
    missing or old.
    """

    time: datetime | None
    node: str
    sequence: int
    gpus: tuple[GpuSample, ...] = ()
    host: HostSample | None = None
    skipped: int = 0
    unmatched_allocations: tuple[GpuAllocation, ...] = ()
    allocation_message: str = ""

    @classmethod
    def from_proto(cls, message: pb.Sample, skipped: int = 0) -> Sample:
        return cls(
            time=time_or_none(message, "time"),
            node=message.node,
            sequence=message.sequence,
            gpus=tuple(GpuSample.from_proto(gpu) for gpu in message.gpus),
            host=HostSample.from_proto(message.host) if message.HasField("host") else None,
            skipped=skipped,
            unmatched_allocations=tuple(_plain(GpuAllocation, one) for one in message.unmatched_allocations),
            allocation_message=message.allocation_message,
        )

    def to_proto(self) -> pb.Sample:
        """The message again, without `skipped`."""
        message = pb.Sample(node=self.node, sequence=self.sequence, allocation_message=self.allocation_message)
        message.unmatched_allocations.extend(_message(pb.GpuAllocation, one) for one in self.unmatched_allocations)
        if self.time is not None:
            message.time.CopyFrom(timestamp(self.time))
        message.gpus.extend(gpu.to_proto() for gpu in self.gpus)
        if self.host is not None:
            message.host.CopyFrom(_message(pb.HostSample, self.host))
        return message


def _state(value: int) -> str:
    return enum_name(pb.DeviceState, value, "DEVICE_STATE_")


def _state_value(name: str) -> int:
    return int(pb.DeviceState.Value(f"DEVICE_STATE_{name.upper()}"))


def _message(kind: type[_M], value: Any, **given: Any) -> _M:
    """The message of a dataclass's fields of the same names; None is absent."""
    values = {item.name: getattr(value, item.name) for item in fields(value)}
    return kind(**{name: item for name, item in {**values, **given}.items() if item is not None})


def _plain(kind: type[_T], message: Message, **given: Any) -> _T:
    """A dataclass from the message's fields of the same names: None for an absent one, a tuple for a repeated one."""
    values = dict(given)
    descriptors = message.DESCRIPTOR.fields_by_name
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in values:
            continue
        descriptor = descriptors[item.name]
        if descriptor.has_presence and not message.HasField(item.name):
            values[item.name] = None
            continue
        value = getattr(message, item.name)
        values[item.name] = tuple(value) if isinstance(item.default, tuple) else value
    return kind(**values)
