"""Content-addressed uploads and downloads that resume where they broke."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

from enginehouse.client.connection import Endpoint, backoff
from enginehouse.errors import (
    DataLossError,
    EnginehouseError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from enginehouse.v1 import blobs_pb2 as pb
from enginehouse.v1 import blobs_pb2_grpc

CHUNK_BYTES = 1 << 20
# Tries in a row that bring nothing further.
MAX_TRIES = 6

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) as a transfer goes on."""


def digest_of(path: Path) -> str:
    """ "sha256:" and the digits of a file's digest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


class AsyncBlobs:
    """The blobs of a project."""

    def __init__(self, endpoint: Endpoint, parent: str) -> None:
        self._endpoint = endpoint
        self._parent = parent

    async def upload(self, path: Path, progress: Progress | None = None) -> str:
        """Upload a file, or the part of it that the server has not got yet; returns its digest.

        Raises:
            InvalidArgumentError: there is no such file, it is empty, or it changes meanwhile.
        """
        if not path.is_file():
            raise InvalidArgumentError(f"{path} is no file: expected one to upload")
        before = _state(path)
        size = before[0]
        if size == 0:
            raise InvalidArgumentError(f"{path} is empty: expected a file with something in it")
        digest = await asyncio.to_thread(digest_of, path)
        if _state(path) != before:
            raise _changed(path)
        await self.upload_part(path, 0, size, digest, progress)
        return digest

    async def upload_part(
        self, path: Path, start: int, size: int, digest: str, progress: Progress | None = None
    ) -> None:
        """Upload `size` bytes of a file from `start` on, whose digest is known, or what the server lacks of them.

        Raises:
            InvalidArgumentError: the file changes meanwhile.
        """
        before = _state(path)
        tries, committed = 0, -1
        while True:
            try:
                found = await self._find(digest)
                if found.complete:
                    if progress is not None:
                        progress(size, size)
                    return
                tries = 0 if found.committed_bytes > committed else tries
                committed = found.committed_bytes
                await self._write(path, start, digest, size, committed, progress)
                return
            except (UnavailableError, OutOfRangeError, DataLossError):
                if _state(path) != before:
                    raise _changed(path) from None
                tries += 1
                if tries >= MAX_TRIES:
                    raise
                await backoff(tries)

    async def download(self, digest: str, target: Path, progress: Progress | None = None, size: int = 0) -> None:
        """Write a blob to a file that does not exist yet.

        Raises:
            DataLossError: what came is not what the digest says; the file is removed.
        """
        with target.open("xb") as file:  # outside of the `try`: a file that is there is not ours to remove
            try:
                await self._read(digest, file, progress, size)
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    async def read(self, digest: str) -> bytes:
        """A small blob, such as a manifest or a log."""
        data = bytearray()
        async for chunk in self.chunks(digest):
            data += chunk
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise _mismatch(digest)
        return bytes(data)

    async def size(self, digest: str) -> int:
        """Bytes of a blob.

        Raises:
            NotFoundError: the project has no such blob.
        """
        found = await self._find(digest)
        if not found.complete:
            raise NotFoundError(f"the project has no blob {digest}", details={"digest": digest})
        return found.committed_bytes

    async def _read(self, digest: str, file: IO[bytes], progress: Progress | None, size: int) -> None:
        done, hasher = 0, hashlib.sha256()
        async for chunk in self.chunks(digest):
            file.write(chunk)
            hasher.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, max(size, done))
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise _mismatch(digest)

    async def _find(self, digest: str) -> pb.FindBlobResponse:
        stub = self._endpoint.stub(blobs_pb2_grpc.BlobsStub)
        try:
            return await self._endpoint.unary(stub.FindBlob, pb.FindBlobRequest(parent=self._parent, digest=digest))
        except NotFoundError:
            return pb.FindBlobResponse()

    async def _write(
        self, path: Path, start: int, digest: str, size: int, offset: int, progress: Progress | None
    ) -> None:
        stub = self._endpoint.stub(blobs_pb2_grpc.BlobsStub)
        messages = _messages(path, start, offset, size, progress, self._parent, digest)
        response = await self._endpoint.send(stub.WriteBlob, messages)
        if not response.complete:
            raise UnavailableError(f"the upload of {path.name} stopped at {response.committed_bytes} of {size} bytes")

    async def chunks(self, digest: str) -> AsyncIterator[bytes]:
        """The bytes of a blob in order, through broken connections."""
        offset, tries = 0, 0
        while True:
            request = pb.ReadBlobRequest(parent=self._parent, digest=digest, offset=offset)
            stub = self._endpoint.stub(blobs_pb2_grpc.BlobsStub)
            try:
                async for response in self._endpoint.stream(stub.ReadBlob, request):
                    if response.offset != offset or zlib.crc32(response.data) != response.crc32:
                        raise DataLossError(f"a chunk of blob {digest} at {offset} arrived damaged")
                    offset += len(response.data)
                    tries = 0
                    yield response.data
                return
            except (UnavailableError, DataLossError) as error:
                tries += 1
                if tries >= MAX_TRIES or _is_permanent(error):
                    raise
                await backoff(tries)


async def _messages(
    path: Path, start: int, offset: int, size: int, progress: Progress | None, parent: str, digest: str
) -> AsyncIterator[pb.WriteBlobRequest]:
    first = True
    with path.open("rb") as file:
        file.seek(start + offset)
        # A finished upload whose digest was not checked yet takes one empty message.
        while (data := file.read(min(CHUNK_BYTES, max(0, size - offset)))) or first:
            message = pb.WriteBlobRequest(offset=offset, data=data, crc32=zlib.crc32(data))
            if first:
                message.parent, message.digest, message.size_bytes = parent, digest, size
                first = False
            yield message
            offset += len(data)
            if progress is not None:
                progress(offset, size)


def _state(path: Path) -> tuple[int, int]:
    """What changes when somebody writes a file: its size and its modification time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _changed(path: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path} changed while it was uploaded: upload it when it is complete")


def _mismatch(digest: str) -> DataLossError:
    return DataLossError(
        f"the bytes that came for {digest} have another digest: the stored blob is damaged, or something on the way is",
        details={"permanent": "true"},
    )


def _is_permanent(error: EnginehouseError) -> bool:
    """A server that says its own copy is damaged will say so again."""
    return isinstance(error, DataLossError) and "arrived damaged" not in error.message
