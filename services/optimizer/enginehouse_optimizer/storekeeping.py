"""Puts together what keeps house in the store: recovery, pointers, garbage collection, checks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from enginehouse_optimizer.api.store import StoreService
from enginehouse_optimizer.settings import OptimizerSettings
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.check import StoreChecker
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.garbage import GarbageCollector, Retention
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.named import NamedBlobs
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.storage.pointers import EnginePointers, ToldEngineIndex
from enginehouse_optimizer.storage.stage_results import StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex
from enginehouse_optimizer.threads import in_thread

_log = structlog.get_logger("store")


def project_blobs(settings: OptimizerSettings, data_dir: Path) -> ProjectBlobs:
    """The blobs where the settings say.

    Raises:
        InvalidArgumentError, FailedPreconditionError: the store's URL or options are wrong, or its client is missing.
    """
    objects = (
        ObjectStore(settings.store_url, settings.store_options, retry_seconds=settings.store_retry_seconds)
        if settings.store_url
        else None
    )
    return ProjectBlobs(data_dir, objects, cache_bytes=settings.store_cache_bytes)


class StoreKeeping:
    """The index of engines with its pointers, and the Store service. Make it inside the event loop."""

    def __init__(self, settings: OptimizerSettings, database: Database, jobs: Jobs, blobs: ProjectBlobs) -> None:
        self._settings = settings
        self._blobs = blobs
        self._pointers = EnginePointers(database, blobs)
        self.engines = ToldEngineIndex(database, self._pointers.changed, pointed_at=blobs.objects is not None)
        results = StageResults(database)
        caches = TimingCacheIndex(database)
        named = NamedBlobs(database, jobs)
        retention = Retention(
            stage_results=settings.stage_result_retention_seconds,
            operations=settings.operation_retention_seconds,
            uploads=settings.upload_retention_seconds,
            quarantine=settings.quarantine_retention_seconds,
        )
        self._collector = GarbageCollector(database, jobs, results, caches, named, blobs, retention)
        checker = StoreChecker(named, self.engines, results, caches, blobs)
        self.service = StoreService(blobs, named, self._collector, checker)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the store before anything writes, recover what the database lacks, begin to keep house.

        Raises:
            FailedPreconditionError: the blobs are elsewhere, or the object store refuses.
            UnavailableError: it does not answer.
        """
        moved = await in_thread(self._blobs.open)
        recovered = await self._pointers.recover(self.engines)
        self._tasks.append(asyncio.ensure_future(self._pointers.run()))
        if self._settings.gc_interval_seconds:
            self._tasks.append(asyncio.ensure_future(self._collector.run(self._settings.gc_interval_seconds)))
        _log.info(
            "store opened",
            store=self._settings.store_url or "data folder",
            moved_blobs=moved,
            recovered_engines=recovered,
        )

    async def close(self) -> None:
        """Stop keeping house; what is not written yet is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pointers.flush()
