"""Published engines in a local cache: fetched over gRPC, checked by digest, whole or not there."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio
import structlog

from enginehouse.artifacts.store import BlobStore
from enginehouse.artifacts.tree import Tree, TreeEntry, materialize
from enginehouse.errors import DataLossError, UnavailableError
from enginehouse.names import parse
from enginehouse.rpc.status import from_rpc_error
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc, engines_pb2, engines_pb2_grpc
from enginehouse_inference.desired.pace import Pace

_log = structlog.get_logger("engines")

_RECORD = ".engine.pb"
_METADATA_SECONDS = 30.0
# A stream that brings nothing for this long is broken, however long the whole takes.
_CHUNK_SECONDS = 60.0


class EngineCache:
    """Engines under `root`: `engines/{project}/{engine}` directories beside the blobs they are made of.

    Args:
        channel: makes a channel to the optimizer; None when there is none.
        pace: how fast all engines together may come.
    """

    def __init__(
        self,
        root: Path,
        channel: Callable[[], grpc.aio.Channel] | None,
        target: str = "",
        pace: Pace | None = None,
    ) -> None:
        self.root = root
        self._engines = root / "engines"
        self._store = BlobStore(root / "blobs")
        self._channel = channel
        self._target = target
        self._pace = pace or Pace()
        self._locks: dict[str, asyncio.Lock] = {}
        self._fetching = 0
        self._cleaning = asyncio.Lock()

    async def directory(self, engine: str) -> Path:
        """The engine's directory, fetched when it is not here.

        Raises:
            InvalidArgumentError: the name is malformed.
            NotFoundError: the optimizer has no such engine.
            UnavailableError: the optimizer does not answer.
            DataLossError: what came does not match its digest.
        """
        name = parse(engine, "engines")
        target = self._engines / name.project / name.id
        async with self._cleaning:
            self._fetching += 1
        try:
            async with self._locks.setdefault(engine, asyncio.Lock()):
                if not await asyncio.to_thread(self._complete, target):
                    await self._fetch(engine, name.parent, target)
        finally:
            self._fetching -= 1
        return target

    async def keep_only(self, engines: Callable[[], Iterable[str]]) -> None:
        """Remove every other engine from the disk, unless one is being fetched now (then the next call does).

        Engines are immutable, so one that is wanted again is fetched anew.
        """
        async with self._cleaning:
            if self._fetching:
                return
            names = [parse(engine, "engines") for engine in engines()]
            keep = {self._engines / name.project / name.id for name in names}
            await asyncio.to_thread(self._remove_others, keep)

    def _complete(self, target: Path) -> bool:
        """Whether an engine is here whole; its blobs are hashed again once in a process, because disks forget."""
        try:
            engine = engines_pb2.Engine.FromString((target / _RECORD).read_bytes())
        except FileNotFoundError:
            return False
        try:
            for file in engine.files:
                same = self._store.path(file.digest).stat().st_size == (target / file.path).stat().st_size
                if not same:
                    raise DataLossError(f"{target / file.path} does not have the size of its blob")
        except (DataLossError, FileNotFoundError) as error:
            _log.error("cached engine is damaged and fetched again", engine=engine.name, reason=str(error))
            shutil.rmtree(target, ignore_errors=True)
            return False
        except Exception:
            shutil.rmtree(target, ignore_errors=True)
            return False
        return True

    async def _fetch(self, engine: str, parent: str, target: Path) -> None:
        if self._channel is None:
            raise UnavailableError(
                f"{engine} is not in the local cache, and there is no optimizer to fetch it from: "
                "set ENGINEHOUSE_OPTIMIZER to its address"
            )
        async with self._channel() as channel:
            try:
                found = await engines_pb2_grpc.EnginesStub(channel).GetEngine(
                    engines_pb2.GetEngineRequest(name=engine), timeout=_METADATA_SECONDS
                )
                for file in found.files:
                    await self._fetch_blob(channel, parent, file)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error, target=self._target) from error
        await asyncio.to_thread(self._place, found, target)
        _log.info("fetched", engine=engine, bytes=sum(f.size_bytes for f in found.files))

    async def _fetch_blob(self, channel: grpc.aio.Channel, parent: str, file: engines_pb2.EngineFile) -> None:
        store = self._store
        if store.has(file.digest):
            with contextlib.suppress(DataLossError):
                await asyncio.to_thread(store.path, file.digest)
                return
        offset = await asyncio.to_thread(store.committed_bytes, file.digest)
        if offset > file.size_bytes:
            store.drop(file.digest)
            offset = 0
        if offset < file.size_bytes:
            request = blobs_pb2.ReadBlobRequest(parent=parent, digest=file.digest, offset=offset)
            call = blobs_pb2_grpc.BlobsStub(channel).ReadBlob(request)
            try:
                while True:
                    chunk = await asyncio.wait_for(call.read(), _CHUNK_SECONDS)
                    if not isinstance(chunk, blobs_pb2.ReadBlobResponse):
                        break  # the end of the stream
                    # In a thread: a checksum of megabytes would hold up the requests that are served meanwhile.
                    offset = await asyncio.to_thread(_append, store, file.digest, offset, chunk)
                    await self._pace.spend(len(chunk.data))
            except asyncio.TimeoutError as error:
                raise UnavailableError(
                    f"{file.digest} stopped arriving at {offset} of {file.size_bytes} bytes"
                ) from error
            finally:
                call.cancel()
        await asyncio.to_thread(store.finish, file.digest, file.size_bytes)

    def _place(self, engine: engines_pb2.Engine, target: Path) -> None:
        tree = Tree(tuple(TreeEntry(f.path, f.digest, f.size_bytes) for f in engine.files))
        draft = target.parent / f".{target.name}.{uuid4().hex[:8]}"
        try:
            materialize(self._store, tree, draft)
            (draft / _RECORD).write_bytes(engine.SerializeToString())
            # Under its name only when it is whole; another process may have been faster.
            with contextlib.suppress(FileExistsError):
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _remove_others(self, keep: set[Path]) -> None:
        kept: set[str] = set()
        for target in self._engines.glob("*/*"):
            try:
                record = engines_pb2.Engine.FromString((target / _RECORD).read_bytes())
            except (OSError, ValueError):
                continue
            digests = {file.digest for file in record.files}
            if target in keep:
                kept |= digests
            else:
                shutil.rmtree(target, ignore_errors=True)
                _log.info("removed from the cache", engine=record.name)
        for blob in (self._store.root / "sha256").glob("*/*"):
            if (digest := f"sha256:{blob.name}") not in kept:
                self._store.delete(digest)


def _append(store: BlobStore, digest: str, offset: int, chunk: blobs_pb2.ReadBlobResponse) -> int:
    """Write a chunk if it is what was sent; returns the bytes that are there now."""
    if zlib.crc32(chunk.data) != chunk.crc32 or chunk.offset != offset:
        raise DataLossError(f"a chunk of {digest} at {offset} was damaged on its way")
    return store.append(digest, offset, chunk.data)
