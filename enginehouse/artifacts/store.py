"""Content-addressed blobs in a local folder.

    {root}/sha256/{2 digits}/{64 digits}   complete blobs, read-only
    {root}/partial/{64 digits}             uploads that resume; `tmp-*`: files on their way in
    {root}/quarantine/                     blobs whose bytes did not match their name

Promises:
- A name under `sha256/` appears only when its bytes are complete, checked against the digest and on disk: a blob is
  written beside, synced, renamed, and its folder synced. A crash at any point leaves at most a file under `partial/`.
- Any number of threads and processes may write the same digest: the last rename wins, with equal bytes.
- `path()` verifies. Hashing each time would cost as much as reading, so a blob is hashed once in each process and again
  only when its inode, size or modification time changed since. One that does not match goes to quarantine, and from
  then on it is as if it had never been stored: a new upload repairs it.
- A blob that somebody wrote or asked for lately is young, whatever its file's age: `collect()` leaves it.
- Bytes of a partial upload are a prefix of what was sent; they are not synced until `finish()`, which hashes the whole.
  After a power cut a partial may hold wrong bytes: `finish()` then answers DATA_LOSS and drops it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from enginehouse.artifacts.digest import PREFIX, digest_bytes, digest_file, digest_stream, parse_digest
from enginehouse.artifacts.files import READ_ONLY, storage_error, sync_directory, write_all
from enginehouse.artifacts.quarantine import Quarantine
from enginehouse.artifacts.uploads import Uploads
from enginehouse.artifacts.uses import Uses
from enginehouse.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
)


@dataclass(frozen=True)
class StoredBlob:
    """A complete blob: `size` in bytes, `modified_ns` in Unix nanoseconds."""

    digest: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class _Seen:
    """What a file looked like when its bytes were last hashed."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Seen:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class BlobStore:
    """Blobs under `root`, which is made when the first blob is written. Safe to use from threads and processes.

    Methods hash, copy and sync: call the ones that move bytes from a thread, not from an event loop.

    Raises (from every method that takes a digest):
        InvalidArgumentError: the digest is malformed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "sha256"
        self.uploads = Uploads(root / "partial")
        self.quarantine = Quarantine(root / "quarantine")
        self._seen: dict[str, _Seen] = {}
        self._seen_lock = threading.Lock()
        self._uses = Uses()

    # Reading

    def touch(self, digest: str) -> None:
        """Somebody is about to use the blob, if there is one: `collect()` leaves it for now. Say so before looking."""
        parse_digest(digest)
        self._uses.touch(digest)

    def claim(self, digest: str) -> bool:
        """Whether the blob is complete, for somebody who is about to name it: `collect()` leaves it for now."""
        self.touch(digest)
        return self.has(digest)

    def last_use(self, digest: str) -> int:
        """When this process last wrote or asked for a blob, in Unix nanoseconds; 0 when it did not."""
        return self._uses.last(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is complete. Looks at the name only: `path()` also verifies."""
        return self._here(digest)

    def size(self, digest: str) -> int:
        """Size in bytes.

        Raises:
            NotFoundError: there is no such blob.
        """
        try:
            return self._location(digest).stat().st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def path(self, digest: str) -> Path:
        """The blob's file, verified; read it, never write it.

        Raises:
            NotFoundError: there is no such blob.
            DataLossError: its bytes do not match; it has been moved to quarantine.
        """
        location = self._location(digest)
        self.touch(digest)
        try:
            seen = _Seen.of(location.stat())
            with self._seen_lock:
                if self._seen.get(digest) == seen:
                    return location
            actual = digest_file(location)
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise storage_error(error, f"reading {digest}") from error
        if actual != digest:
            self.put_away(digest)
            raise DataLossError(
                f"{digest} held other bytes (of {actual}); it is now in {self.quarantine.folder}. Upload or build it "
                "again",
                details={"digest": digest},
            )
        with self._seen_lock:
            self._seen[digest] = seen
        return location

    def read_bytes(self, digest: str) -> bytes:
        """All bytes of a small blob.

        Raises:
            NotFoundError, DataLossError: as `path()`.
        """
        return self.path(digest).read_bytes()

    # Writing whole blobs

    def put_bytes(self, data: bytes) -> str:
        """Store some bytes; returns their digest.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        digest = digest_bytes(data)
        if self._intact(digest):
            return digest
        with self.uploads.temporary("storing bytes") as beside:
            beside.write_bytes(data)
            self._publish(beside, digest)
        return digest

    def put_file(self, source: Path, *, move: bool = False) -> str:
        """Store a file's bytes; returns their digest.

        Args:
            move: take the file itself, when it is on the same file system, instead of copying it. Nobody may have it
                open for writing.

        Raises:
            ResourceExhaustedError: the disk is full.
            InternalError: the file cannot be read.
        """
        with self.uploads.temporary(f"storing {source.name}") as beside:
            if move:
                shutil.move(source, beside)
            else:
                shutil.copyfile(source, beside)
            digest = digest_file(beside)
            if not self._intact(digest):
                self._publish(beside, digest)
        return digest

    # Resumable uploads

    def committed_bytes(self, digest: str) -> int:
        """Bytes that an upload may skip: the whole size when the blob is complete, 0 when nothing is known of it."""
        with suppress(NotFoundError):
            return self.size(digest)
        with suppress(FileNotFoundError):
            return self.uploads.path(digest).stat().st_size
        return 0

    def append(self, digest: str, offset: int, data: bytes) -> int:
        """Add bytes to an upload; returns the bytes committed now (of a complete blob, which stays as it is, its size).

        Raises:
            OutOfRangeError: `offset` is not what `committed_bytes` says.
            ResourceExhaustedError: the disk is full; what was committed before stays.
        """
        self.touch(digest)
        with self.uploads.locked(digest, create=True, finished=lambda: self._here(digest)) as descriptor:
            # Under the lock: another writer may have finished the blob while we waited for it.
            if self._here(digest):
                self.uploads.drop(digest)
                return self.size(digest)
            committed = os.fstat(descriptor).st_size
            if offset != committed:
                raise OutOfRangeError(
                    f"offset {offset} is not where the upload of {digest} stands: expected {committed}",
                    details={"committed_bytes": str(committed)},
                )
            try:
                write_all(descriptor, data, offset)
            except OSError as error:
                os.ftruncate(descriptor, committed)
                raise storage_error(error, f"uploading {digest}") from error
            return committed + len(data)

    def finish(self, digest: str, size: int) -> Path:
        """Complete an upload of `size` bytes; returns the blob's file. Finishing a complete blob again changes nothing.

        Raises:
            FailedPreconditionError: fewer than `size` bytes are committed.
            DataLossError: the bytes do not match the digest, or are too many; the upload is dropped.
        """
        self.touch(digest)
        if self.has(digest):
            return self._finished(digest, size)
        with self.uploads.locked(digest, create=size == 0, finished=lambda: self._here(digest)) as descriptor:
            if self._here(digest):
                self.uploads.drop(digest)
                return self._finished(digest, size)
            committed = os.fstat(descriptor).st_size
            if committed < size:
                raise FailedPreconditionError(
                    f"the upload of {digest} has {committed} of {size} bytes: send the rest first",
                    details={"committed_bytes": str(committed)},
                )
            upload = self.uploads.path(digest)
            with os.fdopen(os.dup(descriptor), "rb") as stream:
                stream.seek(0)
                actual = digest_stream(stream)
            if committed > size or actual != digest:
                upload.unlink(missing_ok=True)
                raise DataLossError(
                    f"the {committed} bytes uploaded as {digest} ({size} bytes) have the digest {actual}: they were "
                    "dropped; upload the blob again from the start",
                    details={"digest": digest, "actual": actual},
                )
            self._publish(upload, digest)
        return self._location(digest)

    def drop(self, digest: str) -> None:
        """Forget an unfinished upload."""
        self.uploads.drop(digest)

    # Keeping house

    def listing(self) -> Iterator[StoredBlob]:
        """Every complete blob, by its name; bytes are not looked at."""
        for path in self._blobs.glob("??/*"):
            with suppress(FileNotFoundError, InvalidArgumentError):
                parse_digest(digest := PREFIX + path.name)
                status = path.stat()
                yield StoredBlob(digest, status.st_size, status.st_mtime_ns)

    def collect(self, digests: Sequence[str], before_ns: int) -> list[str]:
        """Remove those of the blobs that nobody wrote or asked for since `before_ns`; returns which went."""
        with self._uses.leaving(digests, before_ns) as chosen:
            self._remove(chosen)
        return chosen

    def forget_uses(self, before_ns: int, known: Collection[str]) -> None:
        """Forget who asked before then for blobs that are not there; `known` are those that are."""
        self._uses.forget(before_ns, known)

    def delete(self, digest: str) -> None:
        """Remove a blob; nothing happens when there is none. Readers that have it open keep their bytes."""
        parse_digest(digest)
        with self._uses.leaving([digest], 1 << 63) as chosen:
            self._remove(chosen)

    def actual_digest(self, digest: str) -> str:
        """The digest that the stored bytes have now, all of them read again.

        Raises:
            NotFoundError: there is no such blob.
        """
        try:
            return digest_file(self._location(digest))
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise storage_error(error, f"reading {digest}") from error

    def put_away(self, digest: str) -> None:
        """Put a blob whose bytes are wrong into quarantine: from then on it is as if it had never been stored."""
        self.quarantine.put(self._location(digest))
        with self._seen_lock:
            self._seen.pop(digest, None)

    def sweep(self, older_than_seconds: float, *, alone: bool = False) -> int:
        """Remove what crashed writers and abandoned uploads left, as `Uploads.sweep` does."""
        return self.uploads.sweep(older_than_seconds, alone=alone)

    # Internals

    def _location(self, digest: str) -> Path:
        digits = parse_digest(digest)
        return self._blobs / digits[:2] / digits

    def _here(self, digest: str) -> bool:
        return self._location(digest).is_file()

    def _remove(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._location(digest).unlink(missing_ok=True)
            with self._seen_lock:
                self._seen.pop(digest, None)

    def _missing(self, digest: str) -> NotFoundError:
        return NotFoundError(f"there is no blob {digest}", details={"digest": digest})

    def _intact(self, digest: str) -> bool:
        try:
            self.path(digest)
        except (NotFoundError, DataLossError):
            return False
        return True

    def _finished(self, digest: str, size: int) -> Path:
        if self.size(digest) != size:
            raise DataLossError(
                f"{digest} is complete with {self.size(digest)} bytes, not {size}: the size or the digest is wrong"
            )
        return self._location(digest)

    def _publish(self, beside: Path, digest: str) -> None:
        """Give a file, whose bytes have that digest, its name."""
        location = self._location(digest)
        location.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_RDONLY)
        try:
            os.utime(descriptor)  # it becomes a blob now, however long ago its bytes were written
            os.fsync(descriptor)
            seen = _Seen.of(os.fstat(descriptor))
            beside.rename(location)
            # Not before: an upload that a crash left read-only could never be resumed.
            os.fchmod(descriptor, READ_ONLY)
        finally:
            os.close(descriptor)
        sync_directory(location.parent)
        sync_directory(self._blobs)
        with self._seen_lock:
            self._seen[digest] = seen
