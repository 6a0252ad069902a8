"""Optimization jobs: start one, follow it through broken connections, take its engines."""

from __future__ import annotations

import asyncio
import builtins
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.longrunning import operations_pb2

from enginehouse.client.connection import Endpoint, backoff
from enginehouse.client.resources import PAGE_SIZE, all_pages, full_name
from enginehouse.client.values import Calibration, Engine, JobEvent, JobView, Model, Target, VerificationSpec
from enginehouse.client.values.convert import id_of
from enginehouse.errors import DeadlineExceededError, EnginehouseError, InternalError, UnavailableError
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse.v1 import optimizer_pb2_grpc

# Tries in a row to reach the optimizer again; with the waits between them they last about 40 s, a restart's length.
MAX_TRIES = 24


class AsyncJob:
    """An optimization that runs, or ran, in the optimizer."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self._endpoint = endpoint
        self.name = name

    @property
    def id(self) -> str:
        """The last part of the name."""
        return id_of(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def events(self, after_sequence: int = 0) -> AsyncIterator[JobEvent]:
        """What happened and happens, in order and each once, until the job ends. The last event has `job`.

        A connection that breaks is made again and goes on after the last event seen.

        Args:
            after_sequence: skip events up to this one.

        Raises:
            UnavailableError: the optimizer stayed away.
        """
        tries = 0
        while True:
            request = pb.WatchOperationRequest(name=self.name, after_sequence=after_sequence)
            stub = self._endpoint.stub(optimizer_pb2_grpc.OptimizerStub)
            try:
                async for message in self._endpoint.stream(stub.WatchOperation, request):
                    if message.sequence <= after_sequence:
                        continue
                    tries, after_sequence = 0, message.sequence
                    event = JobEvent.from_proto(message)
                    yield event
                    if event.job is not None:
                        return
                # The stream ended and the job did not: a server that drains ends its streams.
                error: EnginehouseError = UnavailableError(f"{self._endpoint.address} ended the events of {self.id}")
            except UnavailableError as unavailable:
                error = unavailable
            tries += 1
            if tries >= MAX_TRIES:
                raise error
            await backoff(tries)

    async def result(self, timeout: float | None = None) -> list[Engine]:
        """Wait for the job and return its engines, in the order of its targets.

        Args:
            timeout: seconds to wait; for ever when None. The job goes on when it passes.

        Raises:
            DeadlineExceededError: the job still runs.
            EnginehouseError: what the job ended with, of the subclass that stands for it; `CancelledError` when it was
                cancelled.
        """
        try:
            view = await asyncio.wait_for(self._end(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                f"{self.id} still runs after {timeout:g} s: wait longer, or cancel it", details={"job": self.name}
            ) from None
        if view.error is not None:
            raise view.error
        return list(view.engines)

    async def metadata(self) -> JobView:
        """The job as it is now: its state, stages, times, and its error or engines once it ended."""
        return JobView.from_operation(await _get_operation(self._endpoint, self.name))

    async def log(self, stage: str) -> str:
        """The end of a stage's log, at most 1 MiB.

        Raises:
            NotFoundError: the job has no such stage, or it has not started.
        """
        stub = self._endpoint.stub(optimizer_pb2_grpc.OptimizerStub)
        request = pb.GetStageLogRequest(name=self.name, stage=stage)
        response: pb.StageLog = await self._endpoint.unary(stub.GetStageLog, request)
        return response.text

    async def cancel(self) -> None:
        """Ask the job to stop. It ends as cancelled soon after, unless it ended before."""
        method = _operations(self._endpoint, "CancelOperation")
        await self._endpoint.unary(method, operations_pb2.CancelOperationRequest(name=self.name))

    async def _end(self) -> JobView:
        events = self.events()
        async for event in events:
            if event.job is not None:
                return event.job
        raise InternalError(f"the events of {self.id} ended without its end")


class AsyncJobs:
    """The jobs of a project."""

    def __init__(self, endpoint: Endpoint, parent: str) -> None:
        self._endpoint = endpoint
        self._parent = parent

    async def start(
        self,
        model: Model | str,
        targets: Sequence[Target],
        *,
        calibration: Calibration | None,
        verification: VerificationSpec | None,
        input_layout: str,
        fold_preprocessing: bool,
        priority: int,
        request_id: str | None,
    ) -> AsyncJob:
        """Start an optimization (`Client.optimize` says what the arguments mean)."""
        request = pb.OptimizeRequest(
            parent=self._parent,
            model=full_name(model, self._parent, "models"),
            targets=[target.to_proto() for target in targets],
            calibration=calibration.to_proto(self._parent) if calibration else None,
            verification=verification.to_proto(self._parent) if verification else None,
            input_layout=input_layout,
            fold_preprocessing=fold_preprocessing,
            priority=priority,
            request_id=request_id or str(uuid.uuid4()),
        )
        stub = self._endpoint.stub(optimizer_pb2_grpc.OptimizerStub)
        operation = await self._endpoint.unary(stub.Optimize, request)
        return AsyncJob(self._endpoint, operation.name)

    async def get(self, job: JobView | str) -> AsyncJob:
        """A job by its name or id.

        Raises:
            NotFoundError: there is none.
        """
        name = full_name(job, self._parent, "operations")
        return AsyncJob(self._endpoint, (await _get_operation(self._endpoint, name)).name)

    async def retry(self, job: JobView | str, *, request_id: str | None = None) -> AsyncJob:
        """Start a finished job's request again, as a new job; stages that had succeeded are reused.

        The model and data are what their names stand for now.

        Args:
            request_id: a UUID; the same again returns the same new job. One of its own when None.

        Raises:
            FailedPreconditionError: the job is not done.
            NotFoundError: there is no such job, or its model or data are gone.
        """
        name = full_name(job, self._parent, "operations")
        request = pb.RetryOptimizationRequest(name=name, request_id=request_id or str(uuid.uuid4()))
        stub = self._endpoint.stub(optimizer_pb2_grpc.OptimizerStub)
        operation = await self._endpoint.unary(stub.RetryOptimization, request)
        return AsyncJob(self._endpoint, operation.name)

    async def list(self, filter: str = "", *, limit: int | None = None) -> builtins.list[JobView]:  # noqa: A002 - AIP-160's name
        """The project's jobs, the newest first; `filter` as the server understands it, such as "state=RUNNING".

        Terms, joined by AND: done=true, state=FAILED, model="projects/...", create_time>="2026-01-31T12:00:00Z".
        """
        request = operations_pb2.ListOperationsRequest(name=self._parent, filter=filter, page_size=PAGE_SIZE)
        method = _operations(self._endpoint, "ListOperations")
        operations = await all_pages(self._endpoint, method, request, "operations", limit)
        return [JobView.from_operation(operation) for operation in operations]


async def _get_operation(endpoint: Endpoint, name: str) -> Any:
    return await endpoint.unary(_operations(endpoint, "GetOperation"), operations_pb2.GetOperationRequest(name=name))


def _operations(endpoint: Endpoint, method: str) -> Any:
    """A call of google.longrunning.Operations (its generated stubs move between releases of their package)."""
    from google.longrunning import operations_pb2_grpc

    return getattr(endpoint.stub(operations_pb2_grpc.OperationsStub), method)
