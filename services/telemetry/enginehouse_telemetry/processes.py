"""The processes that hold memory on a GPU, with their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pynvml as nv

from enginehouse_telemetry import nvml_values as v
from enginehouse_telemetry.readings import ProcessReading

# The kernel gives the first PID namespace this inode (PROC_PID_INIT_INO).
_FIRST_PID_NAMESPACE = "pid:[4026531836]"

_CALLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("compute", ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")),
    ("graphics", ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")),
)


def sees_host_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether our PIDs are the host's, which are the ones that NVML reports."""
    try:
        return str(namespace.readlink()) == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def psutil_name(pid: int) -> str | None:
    """The command's name, None when the process is gone or hidden from us."""
    try:
        return psutil.Process(pid).name() or None
    except (psutil.Error, OSError):
        return None


class ProcessNames:
    """Names by PID, asked once: of NVML, then of `fallback`.

    In a container with PIDs of its own a host's PID is somebody else's, so there is no fallback by default.
    """

    def __init__(self, fallback: Callable[[int], str | None] | None = None) -> None:
        self._fallback = fallback or (psutil_name if sees_host_pids() else None)
        self._known: dict[int, str | None] = {}

    def name(self, pid: int) -> str | None:
        if pid not in self._known:
            self._known[pid] = self._ask(pid)
        return self._known[pid]

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all but these: a PID that comes again is another process."""
        alive = set(pids)
        self._known = {pid: name for pid, name in self._known.items() if pid in alive}

    def _ask(self, pid: int) -> str | None:
        try:
            name = v.text(nv.nvmlSystemGetProcessName(pid))
        except (nv.NVMLError, UnicodeDecodeError):
            name = None
        return name or (self._fallback(pid) if self._fallback else None)


def read_processes(handle: Any, names: ProcessNames) -> tuple[ProcessReading, ...]:
    """The processes of a GPU, by PID.

    Raises:
        pynvml.NVMLError: it does not say.
    """
    found = [
        ProcessReading(
            pid=int(item.pid), kind=kind, name=names.name(int(item.pid)), memory_used_bytes=v.number(item.usedGpuMemory)
        )
        for kind, calls in _CALLS
        for item in _first_known(calls, handle)
    ]
    return tuple(sorted(found, key=lambda process: (process.pid, process.kind)))


def _first_known(calls: tuple[str, ...], handle: Any) -> list[Any]:
    """The answer of the newest call that the driver has."""
    for call in calls[:-1]:
        try:
            return list(getattr(nv, call)(handle))
        except nv.NVMLError as error:
            if error.value != nv.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
    return list(getattr(nv, calls[-1])(handle))
