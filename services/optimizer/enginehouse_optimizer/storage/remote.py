"""A blob store whose truth is an object store; the local folder is a cache that is written through.

    {url}/projects/{project}/blobs/{2 digits}/{64 digits}        complete blobs
    {url}/projects/{project}/quarantine/{64 digits}.{8 random}   objects whose bytes did not match their name

A blob is complete when its object is there. Its file in the cache is made after that, so what is in the cache need not
be asked for. Uploads that are not finished stay local. What is fetched is verified on its way into the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from enginehouse.artifacts import BlobStore, digest_file, parse_digest
from enginehouse.artifacts.digest import PREFIX
from enginehouse.artifacts.store import StoredBlob
from enginehouse.errors import DataLossError, InvalidArgumentError, NotFoundError
from enginehouse_optimizer.storage.cache import CacheBound
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.storage.quarantine import RemoteQuarantine

_log = structlog.get_logger("blobs")


class RemoteBlobStore(BlobStore):
    """Blobs of one project. As `BlobStore`, and its methods ask the network: call all of them from threads.

    Raises (from every method):
        UnavailableError, FailedPreconditionError: the object store does not answer, or refuses.
    """

    def __init__(self, root: Path, objects: ObjectStore, project: str, bound: CacheBound) -> None:
        super().__init__(root)
        self._objects = objects
        self._prefix = f"projects/{project}/blobs"
        self.quarantine: RemoteQuarantine = RemoteQuarantine(
            root / "quarantine", objects, f"projects/{project}/quarantine"
        )
        self._bound = bound
        # Those who want the same blob wait for the first of them to fetch it.
        self._fetching = [threading.Lock() for _ in range(16)]

    def has(self, digest: str) -> bool:
        return self._here(digest) or self._objects.size(self._key(digest)) is not None

    def size(self, digest: str) -> int:
        if self._here(digest):
            return super().size(digest)
        size = self._objects.size(self._key(digest))
        if size is None:
            raise self._missing(digest)
        return size

    def path(self, digest: str) -> Path:
        """The blob's file in the cache, verified, fetched when it is not there (or damaged).

        Raises:
            NotFoundError: there is no such blob.
            DataLossError: the object's bytes do not match; it has been moved to quarantine.
        """
        try:
            return super().path(digest)
        except NotFoundError:
            pass
        except DataLossError:
            _log.warning("a file of the cache is damaged: fetched again", digest=digest)
        with self._fetching[int(parse_digest(digest)[0], 16)]:
            try:
                return super().path(digest)  # somebody else has fetched it
            except NotFoundError:
                return self._fetch(digest)

    def listing(self) -> Iterator[StoredBlob]:
        for found in self._objects.objects(self._prefix):
            digest = PREFIX + found.key.rsplit("/", 1)[-1]
            try:
                parse_digest(digest)
            except InvalidArgumentError:
                continue  # a copy that was interrupted, or not ours
            yield StoredBlob(digest, found.size, found.modified_ns)

    def actual_digest(self, digest: str) -> str:
        actual = self._objects.digest(self._key(digest))
        if actual is None:
            raise self._missing(digest)
        return actual

    def put_away(self, digest: str) -> None:
        """Quarantine a damaged object; and a damaged file of the cache. What of the two is right stays."""
        if self._here(digest) and digest_file(self._location(digest)) != digest:
            super().put_away(digest)
        if self._objects.digest(self._key(digest)) != digest:
            self.quarantine.put_object(self._key(digest))
            if self._here(digest):
                self._objects.put_file(self._location(digest), self._key(digest))

    def push(self) -> int:
        """Store every blob of the local folder that the object store lacks; returns how many."""
        known = {blob.digest for blob in self.listing()}
        lacking = [blob.digest for blob in super().listing() if blob.digest not in known]
        for digest in lacking:
            self._objects.put_file(super().path(digest), self._key(digest))
        return len(lacking)

    def cached(self) -> Iterator[StoredBlob]:
        """The blobs of the cache."""
        return super().listing()

    def _fetch(self, digest: str) -> Path:
        for _ in range(2):  # bytes may also be damaged on the way
            with self.uploads.temporary(f"fetching {digest}") as beside:
                if not self._objects.get_file(self._key(digest), beside):
                    raise self._missing(digest)
                actual = digest_file(beside)
                if actual == digest:
                    self._bound.make_room(self, beside.stat().st_size)
                    super()._publish(beside, digest)
                    return self._location(digest)
        key = self.quarantine.put_object(self._key(digest))
        raise DataLossError(
            f"the object of {digest} in {self._objects.url} held other bytes (of {actual}); it is now {key}. "
            "Upload or build it again",
            details={"digest": digest},
        )

    def _key(self, digest: str) -> str:
        digits = parse_digest(digest)
        return f"{self._prefix}/{digits[:2]}/{digits}"

    def _intact(self, digest: str) -> bool:
        # A file of the cache says that the object is there; without one, `_publish` looks, having the bytes at hand.
        try:
            super().path(digest)
        except (NotFoundError, DataLossError):
            return False
        return True

    def _finished(self, digest: str, size: int) -> Path:
        found = self.size(digest)
        if found != size:
            raise DataLossError(f"{digest} is complete with {found} bytes, not {size}: the size or the digest is wrong")
        return self.path(digest)

    def _publish(self, beside: Path, digest: str) -> None:
        size = beside.stat().st_size
        if self._objects.size(self._key(digest)) != size:
            self._objects.put_file(beside, self._key(digest))
        self._bound.make_room(self, size)
        super()._publish(beside, digest)

    def _remove(self, digests: Sequence[str]) -> None:
        # The cache first: a file there says that the object is there.
        super()._remove(digests)
        self._objects.delete([self._key(digest) for digest in digests])

    def evict(self, digest: str, unused_since_ns: int) -> bool:
        """Take a blob out of the cache, unless somebody asked for it since then."""
        with self._uses.leaving([digest], unused_since_ns) as chosen:
            super()._remove(chosen)
        return bool(chosen)

    def cache_use(self, blob: StoredBlob) -> int:
        """When a blob of the cache was last asked for, or else written."""
        return max(self._uses.last(blob.digest), blob.modified_ns)
