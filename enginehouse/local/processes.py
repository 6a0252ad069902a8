"""Processes that outlive the one that started them: start, recognize, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

# /proc counts start times in ticks of 10 ms, and the boot time that they are added to may be adjusted meanwhile.
START_TIME_SLACK = 1.0


def start_detached(command: Sequence[str], *, variables: Mapping[str, str], log: Path) -> tuple[int, float]:
    """Start a command in a session of its own, its output in `log`; returns its pid and start time.

    A log of an earlier run is kept as `{name}.previous`.
    """
    if log.exists():
        log.replace(log.with_suffix(log.suffix + ".previous"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(variables),
            start_new_session=True,
            close_fds=True,
        )
    # We never wait for it as a child: `is_alive` reaps it. Say so, or Python warns that it still runs.
    process.returncode = 0
    return process.pid, start_time_of(process.pid) or time.time()


def start_time_of(pid: int) -> float | None:
    """When a process started, in seconds since 1970; None when there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def is_alive(pid: int, start_time: float) -> bool:
    """Whether the process of that pid and start time runs: a later process may have its pid."""
    with suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)  # when it is our child and ended, this is what makes it go away
    try:
        process = psutil.Process(pid)
        ours = abs(process.create_time() - start_time) <= START_TIME_SLACK
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def send(pid: int, start_time: float, number: signal.Signals) -> None:
    """Send a signal to a process of ours, if it still is."""
    if is_alive(pid, start_time):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_session(pid: int) -> None:
    """Kill what a process that we started, and saw end or hang, left in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def tail(log: Path, lines: int = 20) -> str:
    """The end of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
