"""Garbage collection: blobs that nothing names, results that nobody takes, operations and leftovers past their time.

What stays, whatever else: what a model, dataset, engine, timing cache or kept stage result names; inputs of live jobs
and logs of kept operations; and every blob written or asked for within the minimum age, or since the oldest live job
came. So a blob that was uploaded and is about to be named stays, as does all that a running job has made or reused. The
names are read in the event loop at one moment; a blob that somebody asks for after that is left, or is gone before they
look (`Uses`). Readers that have a file open keep its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from enginehouse.artifacts import BlobStore
from enginehouse.artifacts.uses import ago_ns
from enginehouse.errors import EnginehouseError
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.named import NamedBlobs
from enginehouse_optimizer.storage.stage_results import StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex
from enginehouse_optimizer.threads import in_thread

MINIMUM_AGE_SECONDS = 3600.0

_log = structlog.get_logger("garbage")

# So many blobs are removed while those who want one of them wait.
_BATCH = 100


@dataclass(frozen=True)
class Retention:
    """How long what nobody needs is kept, in seconds; 0 keeps operations for ever. Timing caches as stage results."""

    stage_results: float
    operations: float
    uploads: float
    quarantine: float


@dataclass(frozen=True)
class Collected:
    """What went, or would go; `bytes` of blobs."""

    blobs: int = 0
    bytes: int = 0
    stage_results: int = 0
    finished_operations: int = 0
    unfinished_uploads: int = 0
    quarantined: int = 0


class _Undo(Exception):
    """Takes a dry run's changes back."""


class GarbageCollector:
    """Collects one project at a time. All methods in the service's event loop."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        results: StageResults,
        caches: TimingCacheIndex,
        named: NamedBlobs,
        blobs: ProjectBlobs,
        retention: Retention,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._results = results
        self._caches = caches
        self._named = named
        self._blobs = blobs
        self._retention = retention
        self._alone = asyncio.Lock()

    async def collect(
        self,
        project: str,
        *,
        dry_run: bool = False,
        minimum_age_seconds: float = MINIMUM_AGE_SECONDS,
        results_unused_seconds: float | None = None,
    ) -> Collected:
        """Remove what nobody needs; returns what went.

        Args:
            dry_run: change nothing; returns what would go.
            minimum_age_seconds: nothing younger goes.
            results_unused_seconds: stage results unused for so long go; as the settings say when None.

        Raises:
            FailedPreconditionError: the object store is shared with an optimizer whose names are not known here.
            UnavailableError: the object store does not answer.
        """
        async with self._alone:
            if not dry_run:
                await in_thread(self._blobs.check_alone)
            before_ns = ago_ns(minimum_age_seconds)
            unused = self._retention.stage_results if results_unused_seconds is None else results_unused_seconds
            results, operations, names = self._forget(project, unused, dry_run)
            live = self._named.oldest_live_ns(project)
            # No await between the names and this: a job that comes later writes, and asks for, what is younger.
            blobs_before_ns = before_ns if live is None else min(before_ns, live)
            store = self._blobs.of(project)
            blobs, size = await in_thread(_sweep, store, names, blobs_before_ns, dry_run)
            uploads = max(self._retention.uploads, minimum_age_seconds)
            unfinished = await in_thread(store.uploads.sweep, uploads, dry_run=dry_run)
            away_before_ns = ago_ns(self._retention.quarantine)
            away = await in_thread(store.quarantine.clear, away_before_ns, dry_run=dry_run)
        found = Collected(blobs, size, results, operations, unfinished, away)
        if found != Collected():
            _log.info("garbage collected", project=project, dry_run=dry_run, **vars(found))
        return found

    async def collect_all(self) -> None:
        """Collect every project; what goes wrong is logged."""
        for project in sorted(self._named.projects() | await in_thread(self._blobs.projects)):
            try:
                await self.collect(project)
            except EnginehouseError as error:
                _log.warning("garbage was not collected", project=project, status=error.reason, error=error.message)

    async def run(self, interval_seconds: float) -> None:
        """Collect again and again, for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.collect_all()
            except Exception:
                _log.exception("garbage collection failed: tried again later")

    def _forget(self, project: str, unused_seconds: float, dry_run: bool) -> tuple[int, int, Collection[str]]:
        """Forget what is past its time; returns how many results and operations, and what is named then."""
        results = operations = 0
        names: Collection[str] = ()
        with suppress(_Undo), self._database.transaction():
            for owner, key in self._results.unused_since(ago_ns(unused_seconds)):
                if owner == project:
                    self._results.forget(project, key)
                    results += 1
            for owner, name in self._caches.unused_since(ago_ns(unused_seconds)):
                if owner == project:
                    self._caches.forget(project, name)
            for number in self._expired(project):
                self._jobs.delete(self._jobs.by_number(number))
                operations += 1
            names = self._named.of(project).keys()
            if dry_run:
                raise _Undo
        return results, operations, names

    def _expired(self, project: str) -> list[int]:
        if not self._retention.operations:
            return []
        sql = "SELECT number FROM jobs WHERE project=? AND end_ns<?"
        rows = self._database.rows(sql, (project, ago_ns(self._retention.operations)))
        return [int(row["number"]) for row in rows]


def _sweep(store: BlobStore, names: Collection[str], before_ns: int, dry_run: bool) -> tuple[int, int]:
    """Remove the blobs that are not named and are older; returns how many, and their bytes."""
    sizes: dict[str, int] = {}
    known: set[str] = set()
    for blob in store.listing():
        known.add(blob.digest)
        if blob.digest not in names and blob.modified_ns < before_ns and store.last_use(blob.digest) < before_ns:
            sizes[blob.digest] = blob.size
    gone: Sequence[str] = list(sizes)
    if not dry_run:
        old = list(sizes)
        gone = [d for at in range(0, len(old), _BATCH) for d in store.collect(old[at : at + _BATCH], before_ns)]
        store.forget_uses(before_ns, known.difference(gone))
    return len(gone), sum(sizes[digest] for digest in gone)
