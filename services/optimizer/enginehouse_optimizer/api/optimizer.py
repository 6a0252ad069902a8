"""Optimizer: starts optimizations, streams their events, shows their logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2

from enginehouse.artifacts import BlobStore
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from enginehouse.names import parse, parse_project
from enginehouse.v1 import models_pb2, optimizer_pb2_grpc
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse.workers.stage import log_end
from enginehouse_optimizer.api.resolution import check_request_id, resolve
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.pipeline.manager import JobManager
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.resources import Resources
from enginehouse_optimizer.threads import in_thread

OPERATIONS = "operations"
MAX_LOG_BYTES = 1 << 20
_EVENTS_AT_ONCE = 256


class OptimizerService(optimizer_pb2_grpc.OptimizerServicer):
    """Jobs, as their callers see them."""

    def __init__(
        self,
        models: Resources[models_pb2.Model],
        datasets: Resources[models_pb2.Dataset],
        jobs: Jobs,
        manager: JobManager,
        blobs: ProjectBlobs,
        notifier: Notifier,
        *,
        allow_unsafe: bool = False,
    ) -> None:
        self._models = models
        self._datasets = datasets
        self._jobs = jobs
        self._manager = manager
        self._blobs = blobs
        self._notifier = notifier
        self._allow_unsafe = allow_unsafe

    async def Optimize(self, request: pb.OptimizeRequest, context: Any) -> operations_pb2.Operation:  # noqa: N802
        project = parse_project(request.parent)
        check_request_id(request.request_id)
        # A repeated request is answered before it is checked: its model may be gone by now.
        if request.request_id and (job := self._jobs.by_request_id(project, request.request_id)) is not None:
            return self._jobs.operation(job)
        return await self._start(project, request)

    async def RetryOptimization(  # noqa: N802
        self, request: pb.RetryOptimizationRequest, context: Any
    ) -> operations_pb2.Operation:
        name = parse(request.name, OPERATIONS)
        check_request_id(request.request_id)
        job = self._jobs.get(name.project, name.id)
        if request.request_id and (again := self._jobs.by_request_id(name.project, request.request_id)) is not None:
            if again.number == job.number:
                raise InvalidArgumentError(
                    f"request_id {request.request_id} is that of {job.name} itself: give the retry one of its own"
                )
            return self._jobs.operation(again)
        if not job.done:
            raise FailedPreconditionError(f"{job.name} is not done: wait for it, or cancel it first")
        retry = pb.OptimizeRequest()
        retry.CopyFrom(job.request)
        retry.request_id = request.request_id
        return await self._start(name.project, retry)

    async def _start(self, project: str, request: pb.OptimizeRequest) -> operations_pb2.Operation:
        inputs = resolve(project, request, self._models.get, self._datasets.get, allow_unsafe=self._allow_unsafe)
        table = inputs.calibration.table if inputs.calibration else ""
        if table and not await in_thread(self._blobs.of(project).claim, table):
            raise FailedPreconditionError(
                f"calibration.table {table} is not complete in this project: upload it with WriteBlob first",
                details={"digest": table},
            )
        return self._jobs.operation(await self._manager.submit(project, request, inputs))

    async def WatchOperation(  # noqa: N802
        self, request: pb.WatchOperationRequest, context: Any
    ) -> AsyncIterator[pb.OperationEvent]:
        name = parse(request.name, OPERATIONS)
        number = self._jobs.get(name.project, name.id).number
        after = max(0, request.after_sequence)
        with self._notifier.watch(("job", number)) as watch:
            while True:
                watch.arm()
                done = self._jobs.by_number(number).done
                events = self._jobs.events(number, after, _EVENTS_AT_ONCE)
                for event in events:
                    after = event.sequence
                    yield event
                if len(events) == _EVENTS_AT_ONCE:
                    continue
                if done:
                    return
                await watch.wait()

    async def GetStageLog(self, request: pb.GetStageLogRequest, context: Any) -> pb.StageLog:  # noqa: N802
        name = parse(request.name, OPERATIONS)
        job = self._jobs.get(name.project, name.id)
        digest = self._jobs.log_digest(job.number, request.stage)
        if digest is None:
            stages = ", ".join(stage.name for stage in self._jobs.stages(job.number))
            raise NotFoundError(f"{name} has no stage {request.stage!r}: it has {stages}")
        live = self._manager.stage_log(job.number, request.stage)
        if live is not None:
            text = await in_thread(log_end, live, MAX_LOG_BYTES)
        elif digest:
            text = await in_thread(_stored_log, self._blobs.of(name.project), digest)
        else:
            text = ""
        return pb.StageLog(stage=request.stage, text=text)


def _stored_log(store: BlobStore, digest: str) -> str:
    path: Path = store.path(digest)
    return log_end(path, MAX_LOG_BYTES)
