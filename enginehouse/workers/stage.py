"""Runs one build stage in its worker environment, as a subprocess that cannot outlive or harm the service.

The stage is the leader of a session of its own, so that a signal to its group reaches whatever it started. Its ends:

| end | answer |
|---|---|
| exit 0 and `result.json` | the result |
| an `error` event | the error of that status |
| cancelled | SIGTERM to the group, SIGKILL after the grace; `asyncio.CancelledError` goes on |
| time limit | the same; DeadlineExceededError |
| resident memory of the group over the limit (looked at every 0.25 s) | SIGKILL; ResourceExhaustedError |
| killed by the kernel for want of memory | ResourceExhaustedError |
| another signal, exit without an event, no `result.json` | InternalError with the signal and the end of the log |
| death of this process | the kernel kills the stage (PR_SET_PDEATHSIG) |
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.errors import (
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.events import ErrorEvent, EventLines, Progress
from enginehouse.workers.memory import group_memory_bytes, out_of_memory_kills

LAUNCHER = Path(__file__).with_name("launcher.py")
RESULT = "result.json"
# What an operator sets to change a limit: errors name it.
TIME_SETTING = "ENGINEHOUSE_STAGE_TIMEOUT_SECONDS"
MEMORY_SETTING = "ENGINEHOUSE_STAGE_MEMORY_BYTES"
LOG_END_BYTES = 4096
# A device with less than this left is full.
FULL_DISK_BYTES = 64 << 10
_WATCH_SECONDS = 0.25
# Descendants that keep the event pipe open are killed with the group; this is how long their end may take.
_LAST_EVENTS_SECONDS = 2.0


@dataclass(frozen=True)
class StageSpec:
    """What to run. `inputs` are directories, `output` an empty directory or one to make."""

    stage: str
    inputs: Mapping[str, Path]
    output: Path
    params: Mapping[str, Any]

    def to_json(self) -> str:
        inputs = {name: str(path) for name, path in self.inputs.items()}
        value = {"stage": self.stage, "inputs": inputs, "output": str(self.output), "params": dict(self.params)}
        return json.dumps(value, indent=1)


@dataclass(frozen=True)
class StageLimits:
    """What a stage may take; None is no limit. `grace_seconds` is the time between SIGTERM and SIGKILL."""

    seconds: float | None = None
    memory_bytes: int | None = None
    grace_seconds: float = 5.0


async def run_stage(
    environment: WorkerEnvironment,
    spec: StageSpec,
    *,
    log: Path,
    progress: Progress,
    started: Callable[[int], None] = lambda group: None,
    limits: StageLimits = StageLimits(),
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a stage to its end; returns what its `result.json` holds.

    Args:
        log: file that takes what the stage writes to its standard output and error; the spec is written beside it.
        progress: called in the event loop with each fraction in [0, 1] and message.
        started: called with the number of the stage's process group once it is there.
        variables: the stage's environment variables; those of this process when None.

    Raises:
        EnginehouseError: as the module's table says.
        FailedPreconditionError: the environment has no interpreter any more.
        UnavailableError: no process can be started.
    """
    if not os.access(environment.python, os.X_OK):
        raise FailedPreconditionError(
            f"the worker environment {environment.name!r} is broken: {environment.python} cannot be run. "
            "Install it again",
            details={"environment": environment.name},
        )
    spec_path = log.with_suffix(".spec.json")
    spec_path.write_text(spec.to_json())
    read_end, write_end = os.pipe()
    kills = out_of_memory_kills()
    try:
        process = await _start(environment, spec_path, write_end, log, worker_variables(variables))
    except BaseException as error:
        os.close(read_end)
        if not isinstance(error, OSError):
            raise
        raise UnavailableError(f"cannot start {environment.python} for stage {spec.stage!r}: {error}") from error
    finally:
        os.close(write_end)
    started(process.pid)
    events = asyncio.ensure_future(_read_events(read_end, progress))
    try:
        stopped = await _supervise(process, spec, limits)
    finally:
        await _end(process, limits.grace_seconds)
        failure = await _last_events(events)
    if stopped is not None:
        raise stopped
    return _outcome(process.returncode or 0, failure, spec, log, killed_for_memory=out_of_memory_kills() > kills)


def worker_variables(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for a worker process: ours, with ENGINEHOUSE_WORKER_PATH (a checkout's) on PYTHONPATH."""
    result = dict(os.environ if variables is None else variables)
    if path := result.get("ENGINEHOUSE_WORKER_PATH"):
        result["PYTHONPATH"] = os.pathsep.join(part for part in (path, result.get("PYTHONPATH", "")) if part)
    result["PYTHONUNBUFFERED"] = "1"  # so that the log of a crash is whole
    return result


def log_end(log: Path, limit_bytes: int = LOG_END_BYTES) -> str:
    """The last bytes of a log as text; empty when there is none."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit_bytes))
        return file.read(limit_bytes).decode(errors="replace")
    return ""


async def _start(
    environment: WorkerEnvironment, spec: Path, events: int, log: Path, variables: Mapping[str, str]
) -> asyncio.subprocess.Process:
    worker = ["-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", str(events)]
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *launcher,
            str(environment.python),
            *worker,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[events],
            start_new_session=True,
            env=variables,
        )


async def _supervise(
    process: asyncio.subprocess.Process, spec: StageSpec, limits: StageLimits
) -> EnginehouseError | None:
    """Wait for the stage; returns why we stopped it, if we did."""
    watch = asyncio.ensure_future(_watch_memory(process.pid, limits.memory_bytes))
    exited = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({watch, exited}, timeout=limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return None
        if watch.done():
            _signal_group(process, signal.SIGKILL)
            used, limit = watch.result(), limits.memory_bytes or 0
            return ResourceExhaustedError(
                f"stage {spec.stage!r} used {used / 2**30:.1f} GiB of memory, over its limit of "
                f"{limit / 2**30:.1f} GiB, and was killed: use smaller batches, or raise {MEMORY_SETTING}",
                details={"stage": spec.stage, "limit_bytes": str(limit), "used_bytes": str(used)},
            )
        return DeadlineExceededError(
            f"stage {spec.stage!r} ran longer than its limit of {limits.seconds:g} s and was stopped: "
            f"raise {TIME_SETTING}, or give it less to do",
            details={"stage": spec.stage, "limit_seconds": f"{limits.seconds:g}"},
        )
    finally:
        watch.cancel()
        exited.cancel()


async def _watch_memory(group: int, limit: int | None) -> int:
    """Returns the group's resident bytes once they are over the limit."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        if limit is not None and (used := await asyncio.to_thread(group_memory_bytes, group)) > limit:
            return used


async def _end(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    """Make sure that nothing of the stage runs: ask, wait, kill. Not interrupted by a second cancellation."""
    cancelled: asyncio.CancelledError | None = None
    if process.returncode is None:
        _signal_group(process, signal.SIGTERM)
        waiting = asyncio.ensure_future(process.wait())
        for seconds in (grace_seconds, None):
            try:
                await asyncio.wait({waiting}, timeout=seconds)
            except asyncio.CancelledError as error:  # of the task, a second time: kill at once
                cancelled = error
            if waiting.done():
                break
            _signal_group(process, signal.SIGKILL)
    _signal_group(process, signal.SIGKILL)  # what the leader left behind
    if cancelled is not None:
        raise cancelled


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def _read_events(descriptor: int, progress: Progress) -> EnginehouseError | None:
    """Pass progress on until the pipe ends; returns the error that the stage reported, if any."""
    loop = asyncio.get_running_loop()
    lines = EventLines()
    failure: EnginehouseError | None = None
    reader = asyncio.StreamReader()
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(1 << 16):
                for event in lines.feed(data):
                    if isinstance(event, ErrorEvent):
                        failure = failure or event.error
                    else:
                        progress(event.fraction, event.message)
        except asyncio.CancelledError:
            return failure
        finally:
            transport.close()
    return failure


async def _last_events(events: asyncio.Future[EnginehouseError | None]) -> EnginehouseError | None:
    await asyncio.wait({events}, timeout=_LAST_EVENTS_SECONDS)
    if not events.done():
        events.cancel()
        await asyncio.wait({events})
    return None if events.cancelled() else events.result()


def _outcome(
    status: int, failure: EnginehouseError | None, spec: StageSpec, log: Path, *, killed_for_memory: bool
) -> dict[str, Any]:
    if failure is not None:
        failure.details.setdefault("stage", spec.stage)
        raise failure
    if status == -signal.SIGKILL and killed_for_memory:
        raise ResourceExhaustedError(
            f"stage {spec.stage!r} was killed by the kernel: the machine or container ran out of memory. Give it more "
            f"memory or use smaller batches. End of its log:\n{log_end(log)}",
            details={"stage": spec.stage},
        )
    if status != 0:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        raise _crash(spec, f"{how} without saying why", log)
    try:
        result = json.loads((spec.output / RESULT).read_bytes())
    except FileNotFoundError:
        raise _crash(spec, f"exited with status 0 but wrote no {RESULT}", log) from None
    except (OSError, ValueError) as error:
        raise _crash(spec, f"wrote a {RESULT} that cannot be read ({error})", log) from error
    if not isinstance(result, dict):
        raise _crash(spec, f"wrote a {RESULT} that is no object", log)
    return result


def _crash(spec: StageSpec, how: str, log: Path) -> EnginehouseError:
    end = log_end(log).strip() or "(empty)"
    with suppress(OSError):
        # What meets a full disk cannot always say so.
        if shutil.disk_usage(spec.output).free < FULL_DISK_BYTES:
            return ResourceExhaustedError(
                f"stage {spec.stage!r} {how}, and the device of its files is full: free space there and try again. "
                f"End of its log:\n{end}",
                details={"stage": spec.stage},
            )
    return InternalError(f"stage {spec.stage!r} {how}. End of its log:\n{end}", details={"stage": spec.stage})
