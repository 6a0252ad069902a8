"""NVML's numbers as ours: its sentinels for "no value" become None, its units ours."""

from __future__ import annotations

from typing import Any

import pynvml

NO_UINT = 0xFFFFFFFF
NO_ULONGLONG = 0xFFFFFFFFFFFFFFFF

_VALUE_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}

_NO_TEXT = ("", "n/a", "[n/a]", "unknown", "[not supported]")

# Bit of the clock event mask: its name, as nvidia-smi has it where nvidia-smi has one.
_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clocks_setting",
    0x200: "board_limit",
    0x400: "reliability",
}

_COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}


def number(value: Any) -> int | None:
    """An unsigned value, None for NVML's "not available" of either width."""
    return None if value is None or value in (NO_UINT, NO_ULONGLONG) else int(value)


def percent(value: Any) -> float | None:
    known = number(value)
    return None if known is None else float(known)


def watts(milliwatts: Any) -> float | None:
    known = number(milliwatts)
    return None if known is None else known / 1000.0


def pstate(value: Any) -> int | None:
    """0 to 15; NVML says 32 when it does not know."""
    known = number(value)
    return known if known is not None and 0 <= known <= 15 else None


def text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return None if value is None or str(value).strip().lower() in _NO_TEXT else str(value).strip()


def field_value(item: Any) -> int | float | None:
    """The number in an NVML field value, None when it has none."""
    member = _VALUE_MEMBERS.get(item.valueType)
    if item.nvmlReturn != pynvml.NVML_SUCCESS or member is None:
        return None
    value = getattr(item.value, member)
    return float(value) if member == "dVal" else number(value)


def memory_celsius(value: int | float | None) -> float | None:
    """Boards whose memory has no sensor answer 0, which memory that works does not have."""
    return None if value is None or value == 0 else float(value)


def reason_names(mask: int) -> tuple[str, ...]:
    """Names of the set bits, lowest first; "bit_N" for one that has no name yet."""
    bits = (1 << position for position in range(mask.bit_length()))
    return tuple(_REASONS.get(bit, f"bit_{bit.bit_length() - 1}") for bit in bits if mask & bit)


def compute_mode(value: int) -> str | None:
    return _COMPUTE_MODES.get(value)


def cuda_version(value: int) -> str:
    """12040 is "12.4"."""
    return f"{value // 1000}.{value % 1000 // 10}"
