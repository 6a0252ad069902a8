"""Readings and messages have the same fields: nothing that is read gets lost on the way."""

from __future__ import annotations

import dataclasses
import json

from enginehouse_telemetry.allocations import Allocation
from enginehouse_telemetry.messages import device_message, sample_message
from enginehouse_telemetry.readings import (
    GpuIdentity,
    GpuReading,
    HostReading,
    MigReading,
    ProcessReading,
    as_mapping,
)

from enginehouse.v1 import telemetry_pb2 as pb


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_fields_match_the_contract() -> None:
    assert names(GpuReading) - {"lost"} == set(pb.GpuSample.DESCRIPTOR.fields_by_name) - {"state", "allocations"}
    assert names(Allocation) == set(pb.GpuAllocation.DESCRIPTOR.fields_by_name)
    assert names(MigReading) == set(pb.MigInstance.DESCRIPTOR.fields_by_name)
    assert names(GpuIdentity) == set(pb.GpuDevice.DESCRIPTOR.fields_by_name) - {"name", "state", "state_message"}
    assert names(HostReading) == set(pb.HostSample.DESCRIPTOR.fields_by_name)
    assert names(ProcessReading) == set(pb.GpuProcess.DESCRIPTOR.fields_by_name)


def test_absent_is_absent_and_zero_is_zero(make_reading) -> None:  # type: ignore[no-untyped-def]
    sample = sample_message(make_reading(3), "projects/default/nodes/n")
    busy, lost = sample.gpus
    assert (sample.node, sample.sequence) == ("projects/default/nodes/n", 3)
    assert busy.HasField("utilization_memory_percent") and busy.utilization_memory_percent == 0
    assert busy.HasField("pstate") and busy.pstate == 0
    assert not busy.HasField("fan_speed_percent")
    assert list(busy.throttle_reasons) == ["gpu_idle", "sw_power_cap"]
    assert busy.state == pb.DEVICE_STATE_OK and lost.state == pb.DEVICE_STATE_LOST
    assert {field.name for field, _ in lost.ListFields()} == {"uuid", "index", "state", "state_message"}
    assert sample.time.ToNanoseconds() == make_reading(3).time_ns


def test_devices(gpus) -> None:  # type: ignore[no-untyped-def]
    present, lost = (device_message(status, "projects/p/nodes/n") for status in gpus.statuses)
    assert present.name == "projects/p/nodes/n/devices/GPU-0" and present.state == pb.DEVICE_STATE_OK
    assert present.HasField("mig_enabled") and not present.mig_enabled and not present.HasField("serial")
    assert lost.state == pb.DEVICE_STATE_LOST and lost.state_message == "GPU is lost"


def test_as_json(make_reading) -> None:  # type: ignore[no-untyped-def]
    plain = json.loads(json.dumps(as_mapping(make_reading())))
    assert plain["gpus"][0]["processes"] == [
        {"pid": 7, "kind": "compute", "name": "python", "memory_used_bytes": 1 << 20}
    ]
    assert "fan_speed_percent" not in plain["gpus"][0] and plain["gpus"][0]["pstate"] == 0
