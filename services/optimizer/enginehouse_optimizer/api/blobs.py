"""Blobs: resumable uploads and downloads of a project's bytes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from enginehouse.artifacts import BlobStore, parse_digest
from enginehouse.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from enginehouse.names import parse_project
from enginehouse.v1 import blobs_pb2 as pb
from enginehouse.v1 import blobs_pb2_grpc
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.threads import in_thread

CHUNK_BYTES = 1 << 20


class BlobsService(blobs_pb2_grpc.BlobsServicer):
    """Blobs of every project, each project's apart."""

    def __init__(
        self, blobs: ProjectBlobs, *, max_blob_bytes: int, max_concurrent_uploads: int, idle_seconds: float
    ) -> None:
        self._blobs = blobs
        self._max_blob_bytes = max_blob_bytes
        self._max_uploads = max_concurrent_uploads
        self._idle_seconds = idle_seconds
        self._uploads = 0

    async def FindBlob(self, request: pb.FindBlobRequest, context: Any) -> pb.FindBlobResponse:  # noqa: N802
        store = self._store(request.parent, request.digest)
        return await in_thread(_find, store, request.digest)

    async def WriteBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.WriteBlobRequest], context: Any
    ) -> pb.WriteBlobResponse:
        requests = request_iterator.__aiter__()
        first = await self._next(requests)
        if first is None:
            raise InvalidArgumentError("the upload is empty: expected parent, digest and size_bytes in a first message")
        store = self._store(first.parent, first.digest)
        digest, size = first.digest, first.size_bytes
        if not 0 <= size <= self._max_blob_bytes:
            raise InvalidArgumentError(
                f"size_bytes is {size}: expected 0 to {self._max_blob_bytes} (ENGINEHOUSE_MAX_BLOB_BYTES)"
            )
        with self._slot():
            known = await in_thread(_find, store, digest)
            complete, committed = known.complete, known.committed_bytes
            request: pb.WriteBlobRequest | None = first
            while request is not None and not complete:
                _check_chunk(request, size, first=request is first)
                committed = await in_thread(store.append, digest, request.offset, request.data)
                if committed >= size:
                    break
                request = await self._next(requests)
            if complete or committed >= size:
                await in_thread(store.finish, digest, size)
                complete, committed = True, size
        return pb.WriteBlobResponse(committed_bytes=committed, complete=complete)

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:  # noqa: N802
        store = self._store(request.parent, request.digest)
        path = await in_thread(store.path, request.digest)
        size = path.stat().st_size
        if not 0 <= request.offset <= size:
            raise OutOfRangeError(f"offset {request.offset} is outside of the blob: expected 0 to {size}")
        with path.open("rb", buffering=0) as file:
            offset = file.seek(request.offset)
            while offset < size:
                data = await in_thread(_read, file)
                if not data:
                    raise DataLossError(f"{request.digest} ends at {offset} of {size} bytes: read it again")
                yield pb.ReadBlobResponse(offset=offset, data=data, crc32=zlib.crc32(data))
                offset += len(data)

    def _store(self, parent: str, digest: str) -> BlobStore:
        project = parse_project(parent)
        parse_digest(digest)
        return self._blobs.of(project)

    async def _next(self, requests: AsyncIterator[pb.WriteBlobRequest]) -> pb.WriteBlobRequest | None:
        """The next message, None at the end. A client that stalls must not keep a slot for ever."""
        try:
            return await asyncio.wait_for(requests.__anext__(), self._idle_seconds)
        except StopAsyncIteration:
            return None
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                f"no bytes came for {self._idle_seconds:g} s: resume the upload where FindBlob says"
            ) from None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._uploads >= self._max_uploads:
            raise ResourceExhaustedError(
                f"{self._uploads} uploads run already: try again, or raise ENGINEHOUSE_MAX_CONCURRENT_UPLOADS",
                retry_after_seconds=1.0,
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


def _find(store: BlobStore, digest: str) -> pb.FindBlobResponse:
    complete = store.claim(digest)
    return pb.FindBlobResponse(complete=complete, committed_bytes=store.committed_bytes(digest))


def _check_chunk(request: pb.WriteBlobRequest, size: int, *, first: bool) -> None:
    if len(request.data) > CHUNK_BYTES:
        raise InvalidArgumentError(f"a chunk has {len(request.data)} bytes: expected at most {CHUNK_BYTES}")
    if request.offset < 0 or request.offset + len(request.data) > size:
        raise InvalidArgumentError(
            f"a chunk of {len(request.data)} bytes at offset {request.offset} leaves the blob of {size} bytes"
        )
    if zlib.crc32(request.data) != request.crc32:
        raise DataLossError(
            f"the chunk at offset {request.offset} has CRC-32 {zlib.crc32(request.data):#010x}, its sender says "
            f"{request.crc32:#010x}: send it again"
        )


def _read(file: Any) -> bytes:
    stream: BinaryIO = file
    return stream.read(CHUNK_BYTES)
