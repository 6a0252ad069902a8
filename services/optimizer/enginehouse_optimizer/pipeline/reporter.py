"""Writes what becomes of a job's stages into storage, progress at a bounded rate."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from enginehouse.errors import EnginehouseError, ResourceExhaustedError
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.storage.jobs import Jobs

# A stage may report thousands of batches; an event of each would fill the database and tell nobody more.
PROGRESS_SECONDS = 0.25
# Nor would one every quarter of a second for hours: the longer a stage runs, the further apart they are. So a stage's
# events grow with the logarithm of its time (about 1000 in an hour), and need no clearing up afterwards.
PROGRESS_SHARE = 0.005
MAX_MESSAGE_CHARACTERS = 2000


class JobReporter:
    """The reporter of one job's stages."""

    def __init__(self, jobs: Jobs, number: int, priority: int = 0) -> None:
        self._jobs = jobs
        self._number = number
        self._priority = priority
        self._stages: dict[str, StoredStage] = {}

    def stage(self, name: str) -> StoredStage:
        return self._stages.setdefault(name, StoredStage(self._jobs, self._number, name, self._priority))

    def log(self, name: str) -> Path | None:
        """The log that a running stage writes."""
        stage = self._stages.get(name)
        return None if stage is None else stage.log

    def flush(self) -> None:
        """Write what a full disk refused; before the job's end, which nothing may follow.

        Raises:
            ResourceExhaustedError: the disk is still full.
        """
        for stage in self._stages.values():
            stage.flush()


class StoredStage:
    """One stage of one job."""

    def __init__(self, jobs: Jobs, number: int, name: str, priority: int) -> None:
        self._jobs = jobs
        self._number = number
        self._name = name
        self.urgency = (-priority, number)
        self._reused = False
        self._log_digest = ""
        self._fraction = 0.0
        self._message = ""
        self._seconds: float | None = None
        self._peak_memory_bytes: int | None = None
        self._began = 0.0
        self._written = 0.0
        self._unwritten: int | None = None
        self._ended = False
        self._later: asyncio.TimerHandle | None = None
        self.log: Path | None = None

    def waiting(self, message: str) -> None:
        self._message = message
        self._write(pb.STAGE_STATE_PENDING)

    def reused(self, log_digest: str) -> None:
        self._reused = True
        self._log_digest = log_digest

    def running(self, log: Path) -> None:
        self.log = log
        self._message = ""
        self._began = time.monotonic()
        self._write(pb.STAGE_STATE_RUNNING)

    def progress(self, fraction: float, message: str) -> None:
        fraction = max(self._fraction, fraction)
        if self._ended or (fraction, message) == (self._fraction, self._message):
            return
        self._fraction, self._message = fraction, message
        # What comes too soon is written a little later, not dropped: it may be the last for an hour.
        if self._later is None:
            now = time.monotonic()
            pause = max(PROGRESS_SECONDS, PROGRESS_SHARE * (now - self._began))
            delay = max(0.0, self._written + pause - now)
            self._later = asyncio.get_running_loop().call_later(delay, self._write_later)

    def logged(self, log_digest: str) -> None:
        self._log_digest = log_digest
        self.log = None

    def measured(self, seconds: float | None, peak_memory_bytes: int | None) -> None:
        self._seconds, self._peak_memory_bytes = seconds, peak_memory_bytes

    def succeeded(self) -> None:
        self._fraction = 1.0
        self._end(pb.STAGE_STATE_REUSED if self._reused else pb.STAGE_STATE_SUCCEEDED)

    def failed(self, error: EnginehouseError) -> None:
        self._message = error.message[:MAX_MESSAGE_CHARACTERS]
        self._end(pb.STAGE_STATE_FAILED)

    def cancelled(self) -> None:
        self._end(pb.STAGE_STATE_CANCELLED)

    def _end(self, state: int) -> None:
        if not self._ended:
            self._ended = True
            if self._later is not None:
                self._later.cancel()
            self._write(state)

    def _write_later(self) -> None:
        self._later = None
        self._write(pb.STAGE_STATE_RUNNING)

    def _write(self, state: int) -> None:
        self._written = time.monotonic()
        self._unwritten = state
        # What is told of a stage must not change how it ends: what cannot be written now is written with what follows.
        with suppress(ResourceExhaustedError):
            self.flush()

    def flush(self) -> None:
        """Write what a full disk refused. Raises ResourceExhaustedError while it is full."""
        if self._unwritten is not None:
            self._jobs.update_stage(
                self._number,
                self._name,
                self._unwritten,
                fraction=self._fraction,
                message=self._message,
                log_digest=self._log_digest,
                seconds=self._seconds,
                peak_memory_bytes=self._peak_memory_bytes,
            )
            self._unwritten = None
