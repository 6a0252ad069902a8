"""Reads every blob again and compares: bytes with digests, names with blobs, engines with their manifests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import structlog

from enginehouse.artifacts import BlobStore, EngineManifest
from enginehouse.errors import DataLossError, InvalidArgumentError, NotFoundError
from enginehouse.v1 import engines_pb2
from enginehouse_optimizer.pipeline.publish import engine_message
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.named import STAGE_RESULTS, TIMING_CACHES, NamedBlobs, Owner
from enginehouse_optimizer.storage.paging import MAX_PAGE_SIZE, Page
from enginehouse_optimizer.storage.stage_results import StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex
from enginehouse_optimizer.threads import in_thread

_log = structlog.get_logger("check")

# What the manifest decides; the rest of the message is the index's own.
_FROM_MANIFEST = ("key", "model_digest", "precision", "backend", "files", "calibration_digest", "build_log_digest")


@dataclass(frozen=True)
class Finding:
    """`kind` is "damaged", "missing" or "inconsistent"; `resource` who names the blob, if anybody does."""

    kind: str
    digest: str
    resource: str
    message: str
    repaired: bool = False


@dataclass(frozen=True)
class Totals:
    """What was looked at, and how much was found."""

    blobs: int
    bytes: int
    findings: int
    engines: int


class StoreChecker:
    """Checks one project. All methods in the service's event loop; bytes are read in threads."""

    def __init__(
        self,
        named: NamedBlobs,
        engines: EngineIndex,
        results: StageResults,
        caches: TimingCacheIndex,
        blobs: ProjectBlobs,
    ) -> None:
        self._named = named
        self._engines = engines
        self._forget = {STAGE_RESULTS: results.forget, TIMING_CACHES: caches.forget}
        self._blobs = blobs

    async def check(self, project: str, *, repair: bool) -> AsyncIterator[Finding | Totals]:
        """Every finding as it is made, then the totals.

        Args:
            repair: put damaged blobs into quarantine, and forget stage results and timing caches that lack one.

        Raises:
            UnavailableError: the object store does not answer.
        """
        store = self._blobs.of(project)
        owners = self._named.of(project)
        intact: set[str] = set()
        blobs = size = findings = engines = 0
        for blob in await in_thread(lambda: list(store.listing())):
            blobs, size = blobs + 1, size + blob.size
            finding = await in_thread(_damage, store, blob.digest, owners, repair)
            if finding is None:
                intact.add(blob.digest)
            else:
                findings += 1
                yield finding
        async for finding in self._missing(project, store, intact, repair):
            findings += 1
            yield finding
        for engine in self._all_engines(project):
            engines += 1
            finding = await in_thread(_disagreement, store, engine)
            if finding is not None:
                findings += 1
                yield finding
        _log.info("store checked", project=project, blobs=blobs, bytes=size, findings=findings)
        yield Totals(blobs, size, findings, engines)

    async def _missing(self, project: str, store: BlobStore, intact: set[str], repair: bool) -> AsyncIterator[Finding]:
        forgotten: set[Owner] = set()
        # Read again, now that the bytes were read: much may have come and gone meanwhile.
        named = list(self._named.required(project))
        missing = [pair for pair in named if pair[1] not in intact and not await in_thread(store.has, pair[1])]
        still = set(self._named.required(project)) if missing else set()
        for owner, digest in missing:
            # Its owner may have gone meanwhile, or the blob come.
            if (owner, digest) not in still or owner in forgotten or await in_thread(store.has, digest):
                continue
            repaired = repair and owner.kind in self._forget
            if repaired:
                self._forget[owner.kind](project, owner.name)
                forgotten.add(owner)
            message = f"{owner.kind} {owner.name} names a blob that is not in the store"
            message += ": forgotten, so that it is made again" if repaired else ": upload or build it again"
            yield Finding("missing", digest, owner.name, message, repaired)

    def _all_engines(self, project: str) -> Iterator[engines_pb2.Engine]:
        token = ""
        while True:
            engines, token = self._engines.page(project, Page.of(MAX_PAGE_SIZE, token))
            yield from engines
            if not token:
                return


def _damage(store: BlobStore, digest: str, owners: Mapping[str, Owner], repair: bool) -> Finding | None:
    """What is wrong with a blob's bytes."""
    try:
        actual = store.actual_digest(digest)
    except NotFoundError:
        return None  # deleted meanwhile; if somebody names it, it will be missing
    if actual == digest:
        return None
    if repair:
        store.put_away(digest)
    owner = owners.get(digest)
    message = f"the stored bytes have the digest {actual}" + (": now in quarantine" if repair else "")
    return Finding("damaged", digest, owner.name if owner else "", message, repair)


def _disagreement(store: BlobStore, engine: engines_pb2.Engine) -> Finding | None:
    """What an engine says of itself that its manifest does not."""
    digest = engine.manifest_digest
    try:
        text = store.read_bytes(digest)
    except (NotFoundError, DataLossError):
        return None  # missing or damaged: found already
    try:
        told = engine_message(engine.name, EngineManifest.from_json(text), digest)
    except InvalidArgumentError as error:
        return Finding("inconsistent", digest, engine.name, f"its manifest cannot be read: {error}")
    wrong = [name for name in _FROM_MANIFEST if getattr(told, name) != getattr(engine, name)]
    if not wrong:
        return None
    return Finding("inconsistent", digest, engine.name, f"its manifest says something else of {', '.join(wrong)}")
