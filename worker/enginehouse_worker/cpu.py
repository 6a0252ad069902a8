"""What the CPU is and which 8-bit dot products it has."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    fields: dict[str, str] = {}
    try:
        for line in _CPUINFO.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    except OSError:
        pass
    return fields


def product() -> str:
    """The CPU's marketing name, or its architecture where the system does not tell."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def int8_products_saturate() -> bool:
    """Whether UINT8 x INT8 products are summed in pairs in 16 bits, which overflow with full-range weights.

    So it is on x86 without VNNI (`vpmaddubsw`). VNNI and Arm's dot products sum in 32 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    flags = _cpuinfo().get("flags", "").split()
    return not {"avx512_vnni", "avx_vnni"} & set(flags)
