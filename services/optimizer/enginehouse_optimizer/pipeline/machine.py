"""What of this machine matters to stages: whether its CPU has VNNI, which GPUs it has, and their driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from enginehouse.artifacts import canonical_json
from enginehouse_optimizer.pipeline.nvml import gpus_and_driver

# Their keys among the versions that a plan is made with. Engines outlive drivers: a driver is part of no stage's key.
CPU, GPU, DRIVER = "cpu", "gpu", "driver"

_PROC = Path("/proc")
# Whether INT8 products saturate decides how weights are quantized.
_DECIDING_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "asimddp", "i8mm"})


def machine_facts(proc: Path = _PROC, nvml: Callable[[], tuple[list[str], str]] = gpus_and_driver) -> dict[str, str]:
    """For CPU and GPU, a text that changes when a stage that depends on it would give another result; and the version
    of NVIDIA's driver, empty where there is none.

    Args:
        nvml: says the GPUs and the driver where `proc` does not.
    """
    gpus, driver = _gpus(proc), _driver(proc)
    if not gpus:
        gpus, driver = nvml()
    return {CPU: canonical_json(_cpu_flags(proc)), GPU: canonical_json(gpus), DRIVER: driver}


def _cpu_flags(proc: Path) -> list[str]:
    try:
        with (proc / "cpuinfo").open(errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return sorted(_DECIDING_FLAGS & set(line.split()))
    except OSError:
        pass
    return []


def _gpus(proc: Path) -> list[str]:
    """The models that NVIDIA's driver names, each once: an engine fits one type of GPU."""
    found: set[str] = set()
    for path in (proc / "driver" / "nvidia" / "gpus").glob("*/information"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found.update(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:"))
    return sorted(found)


def _driver(proc: Path) -> str:
    try:
        first = (proc / "driver" / "nvidia" / "version").read_text(errors="replace").partition("\n")[0]
    except OSError:
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)?", first)
    return found.group() if found else ""
