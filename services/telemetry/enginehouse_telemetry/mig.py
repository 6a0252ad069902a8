"""The MIG instances of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml as nv

from enginehouse_telemetry import nvml_values as v
from enginehouse_telemetry.nvml_errors import raise_if_fatal
from enginehouse_telemetry.readings import MigReading


def read_instances(handle: Any) -> tuple[MigReading, ...]:
    """The instances, in the driver's order; none when MIG is off.

    Raises:
        NVMLError: the driver knows no MIG, or does not answer.
    """
    places = range(nv.nvmlDeviceGetMaxMigDeviceCount(handle))
    return tuple(found for place in places if (found := _at(handle, place)) is not None)


def _at(handle: Any, place: int) -> MigReading | None:
    try:
        instance = nv.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        uuid = v.text(nv.nvmlDeviceGetUUID(instance))
    except nv.NVMLError as error:
        raise_if_fatal(error)
        return None  # nobody made an instance in this place
    memory = _answer(nv.nvmlDeviceGetMemoryInfo, instance)
    return MigReading(
        uuid=uuid or "",
        product=v.text(_answer(nv.nvmlDeviceGetName, instance)) or "",
        gpu_instance_id=v.number(_answer(nv.nvmlDeviceGetGpuInstanceId, instance)),
        compute_instance_id=v.number(_answer(nv.nvmlDeviceGetComputeInstanceId, instance)),
        memory_total_bytes=v.number(memory.total) if memory else None,
        memory_used_bytes=v.number(memory.used) if memory else None,
    )


def _answer(ask: Callable[[Any], Any], instance: Any) -> Any:
    """What an instance answers; None when it does not."""
    try:
        return ask(instance)
    except nv.NVMLError as error:
        raise_if_fatal(error)
        return None
