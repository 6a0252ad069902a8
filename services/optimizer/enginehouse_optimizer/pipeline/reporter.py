"""Writes what becomes of a job's stages into storage, progress at a bounded rate."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from enginehouse.errors import EnginehouseError
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.storage.jobs import Jobs

# A stage may report thousands of batches; an event of each would fill the database and tell nobody more.
PROGRESS_SECONDS = 0.25
MAX_MESSAGE_CHARACTERS = 2000


class JobReporter:
    """The reporter of one job's stages."""

    def __init__(self, jobs: Jobs, number: int) -> None:
        self._jobs = jobs
        self._number = number
        self._stages: dict[str, StoredStage] = {}

    def stage(self, name: str) -> StoredStage:
        return self._stages.setdefault(name, StoredStage(self._jobs, self._number, name))

    def log(self, name: str) -> Path | None:
        """The log that a running stage writes."""
        stage = self._stages.get(name)
        return None if stage is None else stage.log


class StoredStage:
    """One stage of one job."""

    def __init__(self, jobs: Jobs, number: int, name: str) -> None:
        self._jobs = jobs
        self._number = number
        self._name = name
        self._reused = False
        self._log_digest = ""
        self._fraction = 0.0
        self._message = ""
        self._written = 0.0
        self._ended = False
        self._later: asyncio.TimerHandle | None = None
        self.log: Path | None = None

    def reused(self, log_digest: str) -> None:
        self._reused = True
        self._log_digest = log_digest

    def running(self, log: Path) -> None:
        self.log = log
        self._write(pb.STAGE_STATE_RUNNING)

    def progress(self, fraction: float, message: str) -> None:
        fraction = max(self._fraction, fraction)
        if self._ended or (fraction, message) == (self._fraction, self._message):
            return
        self._fraction, self._message = fraction, message
        # What comes too soon is written a little later, not dropped: it may be the last for an hour.
        if self._later is None:
            delay = max(0.0, self._written + PROGRESS_SECONDS - time.monotonic())
            self._later = asyncio.get_running_loop().call_later(delay, self._write_later)

    def logged(self, log_digest: str) -> None:
        self._log_digest = log_digest
        self.log = None

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
        self._jobs.update_stage(
            self._number,
            self._name,
            state,
            fraction=self._fraction,
            message=self._message,
            log_digest=self._log_digest,
        )
