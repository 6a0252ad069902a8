"""This machine's GPUs as NVML names them: where sandboxes and WSL have no /proc/driver/nvidia."""

from __future__ import annotations

from functools import lru_cache

import pynvml


def gpus_and_driver() -> tuple[list[str], str]:
    """The products, each once and sorted, and the driver's version; nothing where there is no driver."""
    try:
        return _asked()
    except pynvml.NVMLError:
        return [], ""


@lru_cache(maxsize=1)
def _asked() -> tuple[list[str], str]:
    """Neither changes while a process lives. Raises NVMLError, which is not kept, where there is no driver."""
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = {str(pynvml.nvmlDeviceGetName(handle)) for handle in handles}
        return sorted(names), str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
