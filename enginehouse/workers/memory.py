"""Resident memory of a process group, and the kernel's count of out-of-memory kills, from /proc and cgroups.

RLIMIT_AS would be simpler, but frameworks reserve far more address space than they use.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# cgroup v2, then v1.
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


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has killed for want of memory; 0 where it does not say."""
    for path in _OOM_COUNTERS:
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
