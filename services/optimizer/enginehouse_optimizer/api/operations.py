"""google.longrunning.Operations over jobs."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2 as pb
from google.longrunning import operations_pb2_grpc
from google.protobuf import empty_pb2, timestamp_pb2

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.names import parse, parse_project
from enginehouse.v1 import optimizer_pb2
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.pipeline.manager import JobManager
from enginehouse_optimizer.storage.jobs import LIVE, Job, Jobs
from enginehouse_optimizer.storage.paging import Page

COLLECTION = "operations"
_STATES = {
    name.removeprefix("JOB_STATE_"): number
    for name, number in optimizer_pb2.JobState.items()
    if number != optimizer_pb2.JOB_STATE_UNSPECIFIED
}
_TERM = re.compile(r'(done|state|model|create_time)\s*(=|<=|>=|<|>)\s*(?:"([^"]*)"|(\S+))')
_FILTER_HELP = (
    'expected terms done=true, done=false, state=RUNNING, model="projects/..." or create_time>="2026-01-31T12:00:00Z" '
    "(or <, <=, >) joined by AND"
)
_FOREVER = (0, 1 << 62)


@dataclass(frozen=True)
class Filter:
    """What a list shows: jobs in these states, of this model when it is set, created between two times (Unix ns)."""

    states: tuple[int, ...]
    model: str = ""
    created: tuple[int, int] = _FOREVER


def parse_filter(text: str) -> Filter:
    """Read a filter.

    Raises:
        InvalidArgumentError: it is not of the form that the message says.
    """
    states, model, (earliest, latest) = set(_STATES.values()), "", _FOREVER
    for term in re.split(r"\s+AND\s+", text.strip()) if text.strip() else []:
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise InvalidArgumentError(f"filter {text!r} is not understood: {_FILTER_HELP}")
        field, comparison, value = match.group(1), match.group(2), match.group(3) or match.group(4) or ""
        if field == "create_time" and comparison != "=":
            time_ns = _time_ns(value, text)
            if comparison.startswith(">"):
                earliest = max(earliest, time_ns + (comparison == ">"))
            else:
                latest = min(latest, time_ns - (comparison == "<"))
        elif comparison != "=" or field == "create_time":
            raise InvalidArgumentError(f"filter {text!r} compares {field} by {comparison}: {_FILTER_HELP}")
        elif field == "model":
            model = value
        elif field == "done" and value in ("true", "false"):
            states &= {state for state in states if (state not in LIVE) == (value == "true")}
        elif field == "state" and value.removeprefix("JOB_STATE_") in _STATES:
            states &= {_STATES[value.removeprefix("JOB_STATE_")]}
        else:
            raise InvalidArgumentError(f"filter {text!r} has an unknown value {value!r}: {_FILTER_HELP}")
    return Filter(tuple(sorted(states)), model, (earliest, latest))


def _time_ns(value: str, text: str) -> int:
    """Unix nanoseconds, within those that a job may be created at."""
    stamp = timestamp_pb2.Timestamp()
    try:
        stamp.FromJsonString(value)
    except ValueError:
        raise InvalidArgumentError(
            f"filter {text!r} has {value!r} for a time: expected RFC 3339 such as 2026-01-31T12:00:00Z"
        ) from None
    return min(max(stamp.ToNanoseconds(), 0), _FOREVER[1])


class OperationsService(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc, unused-ignore]
    """Get, list, cancel, delete and wait."""

    def __init__(self, jobs: Jobs, manager: JobManager, notifier: Notifier) -> None:
        self._jobs = jobs
        self._manager = manager
        self._notifier = notifier

    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> pb.Operation:  # noqa: N802
        return self._jobs.operation(self._job(request.name))

    async def ListOperations(  # noqa: N802
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        project = parse_project(request.name.removesuffix(f"/{COLLECTION}"))
        wanted = parse_filter(request.filter)
        page = Page.of(request.page_size, request.page_token)
        jobs, token = self._jobs.page(project, page, states=wanted.states, model=wanted.model, created=wanted.created)
        return pb.ListOperationsResponse(operations=[self._jobs.operation(job) for job in jobs], next_page_token=token)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._manager.cancel(self._job(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: pb.DeleteOperationRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        job = self._job(request.name)
        if not job.done:
            raise FailedPreconditionError(f"{job.name} is not done: cancel it first")
        self._jobs.delete(job)
        return empty_pb2.Empty()

    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Any) -> pb.Operation:  # noqa: N802
        """Returns when the operation is done, or unfinished when the timeout is up."""
        job = self._job(request.name)
        limit = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        loop_end = None if limit is None else time.monotonic() + limit
        with self._notifier.watch(("job", job.number)) as watch:
            while not job.done:
                watch.arm()
                job = self._jobs.by_number(job.number)
                left = None if loop_end is None else loop_end - time.monotonic()
                if job.done or (left is not None and left <= 0) or not await watch.wait(left):
                    break
        return self._jobs.operation(self._jobs.by_number(job.number))

    def _job(self, name: str) -> Job:
        parsed = parse(name, COLLECTION)
        return self._jobs.get(parsed.project, parsed.id)
