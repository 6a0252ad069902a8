"""Readings as the messages of `enginehouse.v1.Telemetry`. The fields have the same names; None is absent."""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf.message import Message

from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.allocations import NO_ALLOCATIONS, Allocations
from enginehouse_telemetry.nvml_collector import GpuStatus
from enginehouse_telemetry.readings import GpuReading, NodeReading


def sample_message(reading: NodeReading, node: str, allocations: Allocations = NO_ALLOCATIONS) -> pb.Sample:
    """A node's reading and who holds its GPUs. `node` is its resource name."""
    sample = pb.Sample(node=node, sequence=reading.sequence, allocation_message=allocations.message)
    sample.time.FromNanoseconds(reading.time_ns)
    for gpu in reading.gpus:
        message = sample.gpus.add()
        _fill_gpu(message, gpu)
        for allocation in allocations.by_gpu.get(gpu.index, ()):
            _fill(message.allocations.add(), allocation)
    for allocation in allocations.unmatched:
        _fill(sample.unmatched_allocations.add(), allocation)
    sample.host.SetInParent()
    _fill(sample.host, reading.host)
    return sample


def device_message(status: GpuStatus, node: str) -> pb.GpuDevice:
    """A GPU. One that was lost before it could say its UUID is named by its index."""
    identity = status.identity
    device = pb.GpuDevice(
        name=f"{node}/devices/{identity.uuid or identity.index}",
        state=_state(status.lost),
        state_message=status.message,
    )
    _fill(device, identity)
    return device


def _fill_gpu(message: pb.GpuSample, reading: GpuReading) -> None:
    message.state = _state(reading.lost)
    for process in reading.processes:
        _fill(message.processes.add(), process)
    for instance in reading.mig_instances:
        _fill(message.mig_instances.add(), instance)
    _fill(message, dataclasses.replace(reading, processes=(), mig_instances=()))


def _state(lost: bool) -> pb.DeviceState.ValueType:
    return pb.DEVICE_STATE_LOST if lost else pb.DEVICE_STATE_OK


def _fill(message: Message, reading: Any) -> None:
    """Set the fields of `message` that `reading` has values for."""
    known = message.DESCRIPTOR.fields_by_name
    for field in dataclasses.fields(reading):
        value = getattr(reading, field.name)
        if value is None or value == () or field.name not in known:
            continue
        if isinstance(value, tuple):
            getattr(message, field.name).extend(value)
        else:
            setattr(message, field.name, value)
