"""Optimization jobs as they are seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from enginehouse.client.values.convert import enum_name, id_of, seconds_or_none, time_or_none
from enginehouse.client.values.engines import Engine
from enginehouse.errors import EnginehouseError
from enginehouse.rpc.status import from_proto
from enginehouse.v1 import optimizer_pb2 as pb


@dataclass(frozen=True)
class StageView:
    """A stage of a job. `state` is "pending", "running", "succeeded", "reused", "failed" or "cancelled".

    `fraction` is in [0, 1]. `took_seconds` and `peak_memory_bytes` are of the run that made the result: of an earlier
    job's when "reused".
    """

    name: str
    state: str
    fraction: float = 0.0
    message: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    took_seconds: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def seconds(self) -> float | None:
        """How long it was at work in this job; None until it ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return (self.end_time - self.start_time).total_seconds()

    @classmethod
    def from_proto(cls, message: pb.Stage) -> StageView:
        return cls(
            name=message.name,
            state=enum_name(pb.StageState, message.state, "STAGE_STATE_"),
            fraction=message.fraction,
            message=message.message,
            start_time=time_or_none(message, "start_time"),
            end_time=time_or_none(message, "end_time"),
            took_seconds=message.seconds if message.HasField("seconds") else None,
            peak_memory_bytes=message.peak_memory_bytes if message.HasField("peak_memory_bytes") else None,
        )


@dataclass(frozen=True)
class JobView:
    """A job at one moment. `state` is "queued", "running", "succeeded", "failed" or "cancelled".

    `error` says why it failed or was cancelled; `engines` is filled when it succeeded, in the order of the targets.
    """

    name: str
    state: str
    model: str = ""
    stages: tuple[StageView, ...] = ()
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error: EnginehouseError | None = None
    engines: tuple[Engine, ...] = ()

    @property
    def id(self) -> str:
        """The last part of the name."""
        return id_of(self.name)

    @property
    def done(self) -> bool:
        """Whether it ended, one way or another."""
        return self.state in ("succeeded", "failed", "cancelled")

    @classmethod
    def from_operation(cls, operation: Any) -> JobView:
        """The view of a `google.longrunning.Operation` that `Optimize` returned."""
        metadata = pb.OptimizeMetadata()
        operation.metadata.Unpack(metadata)
        return cls(
            name=operation.name,
            state=enum_name(pb.JobState, metadata.state, "JOB_STATE_"),
            model=metadata.model,
            stages=tuple(StageView.from_proto(s) for s in metadata.stages),
            create_time=time_or_none(metadata, "create_time"),
            start_time=time_or_none(metadata, "start_time"),
            end_time=time_or_none(metadata, "end_time"),
            error=from_proto(operation.error) if operation.HasField("error") else None,
            engines=_engines(operation),
        )


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. `sequence` rises by 1 within a job.

    `stage` is the stage that changed, if one did; `queued_seconds` is how long the job waited, in its first running
    event; `job` is the finished job, in its last event.
    """

    sequence: int
    time: datetime | None
    state: str
    stage: StageView | None = None
    queued_seconds: float | None = None
    job: JobView | None = None

    @classmethod
    def from_proto(cls, message: pb.OperationEvent) -> JobEvent:
        return cls(
            sequence=message.sequence,
            time=time_or_none(message, "time"),
            state=enum_name(pb.JobState, message.state, "JOB_STATE_"),
            stage=StageView.from_proto(message.stage) if message.HasField("stage") else None,
            queued_seconds=seconds_or_none(message, "queued"),
            job=JobView.from_operation(message.operation) if message.HasField("operation") else None,
        )


def _engines(operation: Any) -> tuple[Engine, ...]:
    if not operation.HasField("response"):
        return ()
    response = pb.OptimizeResponse()
    operation.response.Unpack(response)
    return tuple(Engine.from_proto(engine) for engine in response.engines)
