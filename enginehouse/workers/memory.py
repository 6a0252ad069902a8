"""Memory of a process group and of the machine, and the kernel's count of out-of-memory kills, from /proc and cgroups.

RLIMIT_AS would be simpler, but frameworks reserve far more address space than they use.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# cgroup v2, then v1.
_CGROUP = Path("/sys/fs/cgroup")
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def group_memory_bytes(group: int) -> int:
    """Resident bytes of all processes of a process group. Pages that its processes share count once for each."""
    total = 0
    for entry in os.scandir(_PROC):
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The command's name is in brackets and may hold anything: fields count from the last bracket.
                stat = (_PROC / entry.name / "stat").read_bytes()
                fields = stat[stat.rindex(b")") + 2 :].split()
                if int(fields[2]) == group:
                    total += int(fields[21]) * _PAGE
    return total


def available_memory_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """What processes can still take: of the machine, or of this container where that is less; None if nothing says.

    Pages of files that the kernel drops when memory is wanted count as available.
    """
    found = [_machine_available(proc), _container_available(cgroup)]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _machine_available(proc: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _container_available(cgroup: Path) -> int | None:
    # cgroup v2, then v1; "max", or v1's number near 2**63, is no limit.
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (*(f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")), "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            most = int((cgroup / limit).read_text())
            taken = int((cgroup / used).read_text())
            for line in (cgroup / stat).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == cache:
                    taken -= int(value)
            return max(0, most - taken)
    return None


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has killed for want of memory; 0 where it does not say."""
    for path in _OOM_COUNTERS:
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
