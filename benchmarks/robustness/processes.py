"""What a server's processes hold: memory, threads, descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Footprint:
    """Of a process and all below it. `rss` is in bytes; shared pages count once for each process that maps them."""

    processes: int
    rss: int
    threads: int
    descriptors: int


def footprint(pid: int) -> Footprint:
    """The footprint of a process and all below it, now."""
    root = psutil.Process(pid)
    rss = threads = descriptors = count = 0
    for process in (root, *root.children(recursive=True)):
        try:
            with process.oneshot():
                rss += process.memory_info().rss
                threads += process.num_threads()
                descriptors += process.num_fds()
                count += 1
        except psutil.NoSuchProcess:
            continue
    return Footprint(count, rss, threads, descriptors)
