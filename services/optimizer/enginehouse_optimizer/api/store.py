"""Store: what it holds, what nobody needs, what is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.duration_pb2 import Duration

from enginehouse.errors import InvalidArgumentError
from enginehouse.names import parse_project
from enginehouse.v1 import store_pb2 as pb
from enginehouse.v1 import store_pb2_grpc
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.check import StoreChecker, Totals
from enginehouse_optimizer.storage.garbage import MINIMUM_AGE_SECONDS, GarbageCollector
from enginehouse_optimizer.storage.named import (
    DATASETS,
    ENGINES,
    JOBS,
    MODELS,
    STAGE_RESULTS,
    TIMING_CACHES,
    NamedBlobs,
)
from enginehouse_optimizer.storage.usage import usage
from enginehouse_optimizer.threads import in_thread


class StoreService(store_pb2_grpc.StoreServicer):
    """Keeps house in a project's store."""

    def __init__(
        self, blobs: ProjectBlobs, named: NamedBlobs, collector: GarbageCollector, checker: StoreChecker
    ) -> None:
        self._blobs = blobs
        self._named = named
        self._collector = collector
        self._checker = checker

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.Usage:  # noqa: N802
        project = parse_project(request.parent)
        found = await in_thread(usage, self._blobs.of(project), self._named.of(project))
        return pb.Usage(
            blobs=found.blobs,
            bytes=found.bytes,
            model_bytes=found.named[MODELS],
            dataset_bytes=found.named[DATASETS],
            engine_bytes=found.named[ENGINES],
            timing_cache_bytes=found.named[TIMING_CACHES],
            # Logs of stages that no result names (of runs that failed) are kept for their operations.
            stage_result_bytes=found.named[STAGE_RESULTS] + found.named[JOBS],
            garbage_bytes=found.garbage,
            unfinished_upload_bytes=found.unfinished_uploads,
            quarantined_bytes=found.quarantined,
        )

    async def CollectGarbage(  # noqa: N802
        self, request: pb.CollectGarbageRequest, context: Any
    ) -> pb.CollectGarbageResponse:
        project = parse_project(request.parent)
        minimum_age = _seconds(request.minimum_age, "minimum_age") if request.HasField("minimum_age") else None
        unused = (
            _seconds(request.stage_results_unused_for, "stage_results_unused_for")
            if request.HasField("stage_results_unused_for")
            else None
        )
        collected = await self._collector.collect(
            project,
            dry_run=request.dry_run,
            minimum_age_seconds=MINIMUM_AGE_SECONDS if minimum_age is None else minimum_age,
            results_unused_seconds=unused,
        )
        return pb.CollectGarbageResponse(**vars(collected))

    async def CheckStore(  # noqa: N802
        self, request: pb.CheckStoreRequest, context: Any
    ) -> AsyncIterator[pb.CheckStoreResponse]:
        async for found in self._checker.check(parse_project(request.parent), repair=request.repair):
            if isinstance(found, Totals):
                yield pb.CheckStoreResponse(totals=pb.CheckTotals(**vars(found)))
            else:
                yield pb.CheckStoreResponse(finding=pb.Finding(**vars(found)))


def _seconds(duration: Duration, field: str) -> float:
    seconds = duration.ToNanoseconds() / 1e9
    if seconds < 0:
        raise InvalidArgumentError(f"{field} is {seconds:g} s: expected 0 or more")
    return seconds
