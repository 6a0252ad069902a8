"""The questions that a GPU is asked: each is one NVML call and gives one or a few fields of a reading.

A question raises `pynvml.NVMLError` when it cannot be answered; the device decides what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml as nv

from enginehouse_telemetry import nvml_values as v
from enginehouse_telemetry.mig import read_instances

Handle = Any
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Query:
    """A question.

    Attributes:
        name: for messages.
        ask: makes the call; returns the fields of the reading that it gives.
        detail: asked at the slower detail period, because the call is slow or its answer changes rarely.
    """

    name: str
    ask: Callable[[Handle], Fields]
    detail: bool = False


def _one(field: str, convert: Callable[[Any], Any], call: Callable[[Handle], Any], *, detail: bool = False) -> Query:
    return Query(field, lambda handle: {field: convert(call(handle))}, detail)


def _utilization(handle: Handle) -> Fields:
    rates = nv.nvmlDeviceGetUtilizationRates(handle)
    return {
        "utilization_gpu_percent": v.percent(rates.gpu),
        "utilization_memory_percent": v.percent(rates.memory),
    }


def _memory(handle: Handle) -> Fields:
    # Version 2 tells what the driver reserves from what processes use, as nvidia-smi does since driver 510.
    try:
        info = nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2)
        reserved = v.number(info.reserved)
    except nv.NVMLError as error:
        if error.value not in (nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise
        info, reserved = nv.nvmlDeviceGetMemoryInfo(handle), None
    return {
        "memory_total_bytes": v.number(info.total),
        "memory_free_bytes": v.number(info.free),
        "memory_used_bytes": v.number(info.used),
        "memory_reserved_bytes": reserved,
    }


def _field_values(handle: Handle) -> Fields:
    memory, average, instant = nv.nvmlDeviceGetFieldValues(
        handle, [nv.NVML_FI_DEV_MEMORY_TEMP, nv.NVML_FI_DEV_POWER_AVERAGE, nv.NVML_FI_DEV_POWER_INSTANT]
    )
    return {
        "temperature_memory_celsius": v.memory_celsius(v.field_value(memory)),
        "power_draw_average_watts": v.watts(v.field_value(average)),
        "power_draw_instant_watts": v.watts(v.field_value(instant)),
    }


def _reasons(handle: Handle) -> Fields:
    try:
        mask = nv.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nv.NVMLError as error:
        if error.value != nv.NVML_ERROR_FUNCTION_NOT_FOUND:  # drivers before 535 have the old name
            raise
        mask = nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    known = v.number(mask)
    return {"throttle_reasons_mask": known, "throttle_reasons": v.reason_names(known) if known is not None else ()}


def _ecc(field: str, kind: int, span: int) -> Query:
    return _one(field, v.number, lambda handle: nv.nvmlDeviceGetTotalEccErrors(handle, kind, span), detail=True)


def _clock(field: str, kind: int) -> Query:
    return _one(field, v.number, lambda handle: nv.nvmlDeviceGetClockInfo(handle, kind))


QUERIES: tuple[Query, ...] = (
    _one("pstate", v.pstate, nv.nvmlDeviceGetPerformanceState),
    Query("utilization", _utilization),
    Query("memory", _memory),
    _one("power_draw_watts", v.watts, nv.nvmlDeviceGetPowerUsage),
    _one("power_limit_watts", v.watts, nv.nvmlDeviceGetPowerManagementLimit),
    _one("power_limit_enforced_watts", v.watts, nv.nvmlDeviceGetEnforcedPowerLimit, detail=True),
    Query("field_values", _field_values),
    _one(
        "temperature_gpu_celsius",
        v.percent,
        lambda handle: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
    ),
    _one("pcie_generation_current", v.number, nv.nvmlDeviceGetCurrPcieLinkGeneration),
    _one("pcie_width_current", v.number, nv.nvmlDeviceGetCurrPcieLinkWidth),
    _one("pcie_replays", v.number, nv.nvmlDeviceGetPcieReplayCounter, detail=True),
    _clock("clock_graphics_mhz", nv.NVML_CLOCK_GRAPHICS),
    _clock("clock_sm_mhz", nv.NVML_CLOCK_SM),
    _clock("clock_memory_mhz", nv.NVML_CLOCK_MEM),
    _clock("clock_video_mhz", nv.NVML_CLOCK_VIDEO),
    _one("energy_millijoules", v.number, nv.nvmlDeviceGetTotalEnergyConsumption),
    Query("throttle_reasons", _reasons),
    _one("utilization_encoder_percent", v.percent, lambda handle: nv.nvmlDeviceGetEncoderUtilization(handle)[0]),
    _one("utilization_decoder_percent", v.percent, lambda handle: nv.nvmlDeviceGetDecoderUtilization(handle)[0]),
    _ecc("ecc_corrected_volatile", nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_VOLATILE_ECC),
    _ecc("ecc_uncorrected_volatile", nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_VOLATILE_ECC),
    _ecc("ecc_corrected_aggregate", nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_AGGREGATE_ECC),
    _ecc("ecc_uncorrected_aggregate", nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_AGGREGATE_ECC),
    _one("fan_speed_percent", v.percent, nv.nvmlDeviceGetFanSpeed, detail=True),
    Query("mig_instances", lambda handle: {"mig_instances": read_instances(handle)}, detail=True),
)


def _bus(handle: Handle) -> Fields:
    return {"pci_bus_id": v.text(nv.nvmlDeviceGetPciInfo(handle).busId)}


def _capability(handle: Handle) -> Fields:
    major, minor = nv.nvmlDeviceGetCudaComputeCapability(handle)
    return {"compute_capability": f"{major}.{minor}"}


def _limits(handle: Handle) -> Fields:
    low, high = nv.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    return {"power_limit_min_watts": v.watts(low), "power_limit_max_watts": v.watts(high)}


def _max_clock(field: str, kind: int) -> Query:
    return _one(field, v.number, lambda handle: nv.nvmlDeviceGetMaxClockInfo(handle, kind))


IDENTITY: tuple[Query, ...] = (
    _one("uuid", lambda value: v.text(value) or "", nv.nvmlDeviceGetUUID),
    _one("product", lambda value: v.text(value) or "", nv.nvmlDeviceGetName),
    _one("serial", v.text, nv.nvmlDeviceGetSerial),
    Query("pci_bus_id", _bus),
    Query("compute_capability", _capability),
    _one("vbios_version", v.text, nv.nvmlDeviceGetVbiosVersion),
    _one("memory_total_bytes", lambda info: v.number(info.total), nv.nvmlDeviceGetMemoryInfo),
    _one("pcie_generation_max", v.number, nv.nvmlDeviceGetMaxPcieLinkGeneration),
    _one("pcie_width_max", v.number, nv.nvmlDeviceGetMaxPcieLinkWidth),
    _one("power_limit_default_watts", v.watts, nv.nvmlDeviceGetPowerManagementDefaultLimit),
    Query("power_limits", _limits),
    _max_clock("clock_graphics_max_mhz", nv.NVML_CLOCK_GRAPHICS),
    _max_clock("clock_sm_max_mhz", nv.NVML_CLOCK_SM),
    _max_clock("clock_memory_max_mhz", nv.NVML_CLOCK_MEM),
    _one("ecc_enabled", lambda modes: bool(modes[0]), nv.nvmlDeviceGetEccMode),
    _one("mig_enabled", lambda modes: bool(modes[0]), nv.nvmlDeviceGetMigMode),
    _one("persistence_enabled", bool, nv.nvmlDeviceGetPersistenceMode),
    _one("compute_mode", v.compute_mode, nv.nvmlDeviceGetComputeMode),
)
