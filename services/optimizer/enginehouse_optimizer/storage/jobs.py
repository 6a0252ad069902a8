"""Jobs, their stages and their events. Every change is one transaction with the event that tells of it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2
from google.rpc import status_pb2

from enginehouse.errors import NotFoundError
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.paging import Page

LIVE = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
_STAGE_ENDED = (pb.STAGE_STATE_SUCCEEDED, pb.STAGE_STATE_REUSED, pb.STAGE_STATE_FAILED, pb.STAGE_STATE_CANCELLED)


@dataclass(frozen=True)
class Job:
    """A job as it is stored. `inputs` is JSON of what the request meant when it came; times are Unix nanoseconds."""

    number: int
    project: str
    id: str
    model: str
    state: int
    cancel_requested: bool
    create_ns: int
    start_ns: int | None
    end_ns: int | None
    request: pb.OptimizeRequest
    inputs: str
    priority: int = 0

    @property
    def name(self) -> str:
        return f"projects/{self.project}/operations/{self.id}"

    @property
    def done(self) -> bool:
        return self.state not in LIVE


class Jobs:
    """The table of jobs. `on_event` is called with a job's number after each event is committed."""

    def __init__(self, database: Database, on_event: Callable[[int], None] = lambda number: None) -> None:
        self._database = database
        self.on_event = on_event

    def create(self, project: str, job_id: str, request: pb.OptimizeRequest, inputs: str, stages: Sequence[str]) -> Job:
        """Add a queued job with its stages, all pending."""
        with self._database.transaction():
            number = self._database.insert(
                "INSERT INTO jobs (project, id, request_id, model, state, create_ns, request, inputs, priority) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    project,
                    job_id,
                    request.request_id or None,
                    request.model,
                    pb.JOB_STATE_QUEUED,
                    time.time_ns(),
                    request.SerializeToString(),
                    inputs,
                    request.priority,
                ),
            )
            self.replan(number, stages)
            self._append(number, pb.OperationEvent(state=pb.JOB_STATE_QUEUED))
        self.on_event(number)
        return self.by_number(number)

    def add_stage(self, number: int, name: str) -> None:
        """Add a pending stage to a running job, behind the others; nothing happens when it has it already."""
        self._database.execute(
            "INSERT OR IGNORE INTO job_stages (job, position, name, state) "
            "SELECT ?, COALESCE(MAX(position), 0) + 1, ?, ? FROM job_stages WHERE job=?",
            (number, name, pb.STAGE_STATE_PENDING, number),
        )

    def replan(self, number: int, stages: Sequence[str]) -> None:
        """Make a job's stages those of its plan, in its order; what is known of those that stay is kept.

        A job that a stopped service left may have others: a stage that explained a refusal, or those of an earlier
        version's plan.
        """
        with self._database.transaction():
            if [stage.name for stage in self.stages(number)] == list(stages):
                return
            logs = {
                str(row["name"]): str(row["log_digest"])
                for row in self._database.rows("SELECT name, log_digest FROM job_stages WHERE job=?", (number,))
            }
            self._database.execute("DELETE FROM job_stages WHERE job=?", (number,))
            for position, name in enumerate(stages):
                self._database.execute(
                    "INSERT INTO job_stages (job, position, name, state, log_digest) VALUES (?, ?, ?, ?, ?)",
                    (number, position, name, pb.STAGE_STATE_PENDING, logs.get(name, "")),
                )

    def by_number(self, number: int) -> Job:
        row = self._database.row("SELECT * FROM jobs WHERE number=?", (number,))
        if row is None:
            raise NotFoundError("the operation does not exist any more")
        return _job(row)

    def get(self, project: str, job_id: str) -> Job:
        """Raises NotFoundError when there is none."""
        row = self._database.row("SELECT * FROM jobs WHERE project=? AND id=?", (project, job_id))
        if row is None:
            raise NotFoundError(f"projects/{project}/operations/{job_id} does not exist")
        return _job(row)

    def by_request_id(self, project: str, request_id: str) -> Job | None:
        row = self._database.row("SELECT * FROM jobs WHERE project=? AND request_id=?", (project, request_id))
        return None if row is None else _job(row)

    def live(self) -> list[Job]:
        """Jobs that are queued or running, in the order they came."""
        return [
            _job(row) for row in self._database.rows("SELECT * FROM jobs WHERE state IN (?, ?) ORDER BY number", LIVE)
        ]

    def uses_model(self, project: str, model: str) -> bool:
        """Whether a live job optimizes that model."""
        row = self._database.row(
            "SELECT 1 FROM jobs WHERE project=? AND model=? AND state IN (?, ?)", (project, model, *LIVE)
        )
        return row is not None

    def page(
        self,
        project: str,
        page: Page,
        *,
        states: Sequence[int],
        model: str,
        created: tuple[int, int] = (0, 1 << 62),
    ) -> tuple[list[Job], str]:
        """A page, newest first, and the token of the next.

        Args:
            created: earliest and latest time of creation (Unix nanoseconds), both included.
        """
        marks = ",".join("?" * len(states))
        before = page.number_after(default=1 << 62)
        rows = self._database.rows(
            f"SELECT * FROM jobs WHERE project=? AND number<? AND state IN ({marks}) AND (?='' OR model=?) "
            "AND create_ns BETWEEN ? AND ? ORDER BY number DESC LIMIT ?",
            (project, before, *states, model, model, *created, page.size + 1),
        )
        shown = rows[: page.size]
        token = page.next_token([str(row["number"]) for row in shown], len(rows) > page.size)
        return [_job(row) for row in shown], token

    def delete(self, job: Job) -> None:
        """Forget a job with its events."""
        self._database.execute("DELETE FROM jobs WHERE number=?", (job.number,))
        self.on_event(job.number)

    def blobs(self) -> Iterator[tuple[str, str]]:
        """(project, digest) of the blobs that jobs name: a live job's inputs, and every job's logs."""
        for job in self.live():
            for digest in sorted(_digests(json.loads(job.inputs))):
                yield job.project, digest
        for row in self._database.rows(
            "SELECT project, log_digest FROM job_stages JOIN jobs ON jobs.number=job_stages.job WHERE log_digest!=''"
        ):
            yield row["project"], row["log_digest"]

    def request_cancel(self, number: int) -> None:
        self._database.execute("UPDATE jobs SET cancel_requested=1 WHERE number=?", (number,))

    # Changes, each with its event

    def start(self, number: int) -> None:
        """A queued job runs now; the event says how long it waited."""
        now = time.time_ns()
        event = pb.OperationEvent(state=pb.JOB_STATE_RUNNING)
        with self._database.transaction():
            job = self.by_number(number)
            event.queued.FromNanoseconds(max(0, now - job.create_ns))
            self._database.execute(
                "UPDATE jobs SET state=?, start_ns=COALESCE(start_ns, ?) WHERE number=?",
                (pb.JOB_STATE_RUNNING, now, number),
            )
            self._append(number, event)
        self.on_event(number)

    def requeue(self, number: int) -> None:
        """A job that a stopped service left live waits again, its unfinished stages too."""
        with self._database.transaction():
            self._database.execute("UPDATE jobs SET state=? WHERE number=?", (pb.JOB_STATE_QUEUED, number))
            self._database.execute(
                "UPDATE job_stages SET state=?, fraction=0, message='', start_ns=NULL, end_ns=NULL, seconds=NULL, "
                "peak_memory_bytes=NULL WHERE job=?",
                (pb.STAGE_STATE_PENDING, number),
            )
            self._append(number, pb.OperationEvent(state=pb.JOB_STATE_QUEUED))
        self.on_event(number)

    def update_stage(
        self,
        number: int,
        name: str,
        state: int,
        *,
        fraction: float = 0.0,
        message: str = "",
        log_digest: str = "",
        seconds: float | None = None,
        peak_memory_bytes: int | None = None,
    ) -> None:
        """A stage of a running job changed."""
        now = time.time_ns()
        with self._database.transaction():
            self._database.execute(
                "UPDATE job_stages SET state=?, fraction=?, message=?, seconds=?, peak_memory_bytes=?, "
                "start_ns=CASE WHEN ? THEN COALESCE(start_ns, ?) ELSE start_ns END, "
                "end_ns=CASE WHEN ? THEN ? ELSE NULL END, "
                "log_digest=CASE WHEN ?='' THEN log_digest ELSE ? END WHERE job=? AND name=?",
                (
                    state,
                    fraction,
                    message,
                    seconds,
                    peak_memory_bytes,
                    state != pb.STAGE_STATE_PENDING,
                    now,
                    state in _STAGE_ENDED,
                    now,
                    log_digest,
                    log_digest,
                    number,
                    name,
                ),
            )
            row = self._database.row("SELECT * FROM job_stages WHERE job=? AND name=?", (number, name))
            if row is None:
                return
            self._append(number, pb.OperationEvent(state=pb.JOB_STATE_RUNNING, stage=_stage(row)))
        self.on_event(number)

    def finish(
        self, number: int, state: int, *, response: pb.OptimizeResponse | None, error: status_pb2.Status | None
    ) -> None:
        """The job's end; the last event carries the finished operation. Stages that had not ended are cancelled."""
        now = time.time_ns()
        with self._database.transaction():
            self._database.execute(
                "UPDATE job_stages SET state=?, end_ns=? WHERE job=? AND state IN (?, ?)",
                (pb.STAGE_STATE_CANCELLED, now, number, pb.STAGE_STATE_PENDING, pb.STAGE_STATE_RUNNING),
            )
            self._database.execute(
                "UPDATE jobs SET state=?, end_ns=?, response=?, error=? WHERE number=?",
                (
                    state,
                    now,
                    None if response is None else response.SerializeToString(),
                    None if error is None else error.SerializeToString(),
                    number,
                ),
            )
            operation = self.operation(self.by_number(number))
            self._append(number, pb.OperationEvent(state=pb.JobState.ValueType(state), operation=operation))
        self.on_event(number)

    # Views

    def operation(self, job: Job) -> operations_pb2.Operation:
        """The job as a google.longrunning.Operation."""
        metadata = pb.OptimizeMetadata(model=job.model, state=pb.JobState.ValueType(job.state), request=job.request)
        metadata.stages.extend(self.stages(job.number))
        _set_time(metadata.create_time, job.create_ns)
        _set_time(metadata.start_time, job.start_ns)
        _set_time(metadata.end_time, job.end_ns)
        operation = operations_pb2.Operation(name=job.name, done=job.done)
        operation.metadata.Pack(metadata)
        row = self._database.row("SELECT response, error FROM jobs WHERE number=?", (job.number,))
        if row is not None and row["response"] is not None:
            operation.response.Pack(pb.OptimizeResponse.FromString(row["response"]))
        elif row is not None and row["error"] is not None:
            operation.error.MergeFromString(row["error"])
        return operation

    def stages(self, number: int) -> list[pb.Stage]:
        rows = self._database.rows("SELECT * FROM job_stages WHERE job=? ORDER BY position", (number,))
        return [_stage(row) for row in rows]

    def log_digest(self, number: int, stage: str) -> str | None:
        """The digest of a stage's log, empty while it has none; None when there is no such stage."""
        row = self._database.row("SELECT log_digest FROM job_stages WHERE job=? AND name=?", (number, stage))
        return None if row is None else str(row["log_digest"])

    def events(self, number: int, after: int, limit: int = 256) -> list[pb.OperationEvent]:
        """Up to `limit` events with a sequence above `after`."""
        rows = self._database.rows(
            "SELECT body FROM events WHERE job=? AND sequence>? ORDER BY sequence LIMIT ?", (number, after, limit)
        )
        return [pb.OperationEvent.FromString(row["body"]) for row in rows]

    def _append(self, number: int, event: pb.OperationEvent) -> None:
        row = self._database.row("SELECT COALESCE(MAX(sequence), 0) AS last FROM events WHERE job=?", (number,))
        event.sequence = (int(row["last"]) if row else 0) + 1
        _set_time(event.time, time.time_ns())
        self._database.execute(
            "INSERT INTO events VALUES (?, ?, ?)", (number, event.sequence, event.SerializeToString())
        )


def _digests(value: Any) -> set[str]:
    """Every digest in a JSON value. Some are not of blobs; to keep too much is safe."""
    if isinstance(value, str):
        return {value} if value.startswith("sha256:") else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(_digests(part) for part in parts))


def _set_time(stamp: Any, nanoseconds: int | None) -> None:
    if nanoseconds is not None:
        stamp.FromNanoseconds(nanoseconds)


def _job(row: sqlite3.Row) -> Job:
    return Job(
        number=row["number"],
        project=row["project"],
        id=row["id"],
        model=row["model"],
        state=row["state"],
        cancel_requested=bool(row["cancel_requested"]),
        create_ns=row["create_ns"],
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        request=pb.OptimizeRequest.FromString(row["request"]),
        inputs=row["inputs"],
        priority=row["priority"],
    )


def _stage(row: sqlite3.Row) -> pb.Stage:
    stage = pb.Stage(name=row["name"], state=row["state"], fraction=row["fraction"], message=row["message"])
    _set_time(stage.start_time, row["start_ns"])
    _set_time(stage.end_time, row["end_ns"])
    if row["seconds"] is not None:
        stage.seconds = row["seconds"]
    if row["peak_memory_bytes"] is not None:
        stage.peak_memory_bytes = row["peak_memory_bytes"]
    return stage
