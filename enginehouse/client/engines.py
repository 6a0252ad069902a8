"""Published engines: find them, read their manifests, download them."""

from __future__ import annotations

import asyncio
import builtins
import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse.client.blobs import AsyncBlobs, Progress, digest_of
from enginehouse.client.connection import Endpoint
from enginehouse.client.resources import PAGE_SIZE, all_pages, full_name
from enginehouse.client.values import Engine, Model
from enginehouse.client.values.engines import precision_value
from enginehouse.errors import AlreadyExistsError
from enginehouse.v1 import engines_pb2 as pb
from enginehouse.v1 import engines_pb2_grpc

MANIFEST = "manifest.json"


class AsyncEngines:
    """The engines of a project."""

    def __init__(self, endpoint: Endpoint, blobs: AsyncBlobs, parent: str) -> None:
        self._endpoint = endpoint
        self._blobs = blobs
        self._parent = parent

    async def get(self, engine: Engine | str) -> Engine:
        """An engine by its name or id.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetEngineRequest(name=full_name(engine, self._parent, "engines"))
        stub = self._endpoint.stub(engines_pb2_grpc.EnginesStub)
        return Engine.from_proto(await self._endpoint.unary(stub.GetEngine, request))

    async def list(
        self, *, model: Model | str | None = None, backend: str = "", precision: str | None = None
    ) -> builtins.list[Engine]:
        """The project's engines; only those of a model, a backend, a precision, where given."""
        request = pb.ListEnginesRequest(parent=self._parent, page_size=PAGE_SIZE, backend=backend)
        if model is not None:
            request.model = full_name(model, self._parent, "models")
        if precision is not None:
            request.precision = precision_value(precision)
        stub = self._endpoint.stub(engines_pb2_grpc.EnginesStub)
        return [Engine.from_proto(e) for e in await all_pages(self._endpoint, stub.ListEngines, request, "engines")]

    async def delete(self, engine: Engine | str) -> None:
        """Delete an engine.

        Raises:
            FailedPreconditionError: a serving configuration names it.
        """
        request = pb.DeleteEngineRequest(name=full_name(engine, self._parent, "engines"))
        stub = self._endpoint.stub(engines_pb2_grpc.EnginesStub)
        await self._endpoint.unary(stub.DeleteEngine, request)

    async def manifest(self, engine: Engine | str) -> dict[str, Any]:
        """The engine's manifest: how it was made, stage by stage, with which tools, and what it measured."""
        digest = (await self._whole(engine)).manifest_digest
        manifest: dict[str, Any] = json.loads(await self._blobs.read(digest))
        return manifest

    async def build_log(self, engine: Engine | str) -> str:
        """What the backend said while it built the engine; empty when it kept no log."""
        digest = (await self._whole(engine)).build_log_digest
        return (await self._blobs.read(digest)).decode(errors="replace") if digest else ""

    async def download(
        self, engine: Engine | str, directory: str | Path | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Download an engine's files and its manifest; every file is checked against its digest.

        The directory appears when it is whole, never half filled. One that holds this engine already is returned.

        Args:
            directory: where the files go, absent or empty; a folder of the engine's id in the current one when None.
            progress: told (bytes done, bytes in all).

        Raises:
            AlreadyExistsError: the directory holds something else.
            DataLossError: what came does not match its digest.
        """
        value = await self._whole(engine)
        target = Path(directory) if directory is not None else Path(value.id)
        if target.exists() and not _is_empty(target):
            return await _known(target, value)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            await self._fill(partial, value, progress)
            partial.chmod(0o755)
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                return await _known(target, value)  # somebody else was faster
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        return target

    async def _fill(self, folder: Path, engine: Engine, progress: Progress | None) -> None:
        total = sum(file.size_bytes for file in engine.files)
        before = 0

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done, total)

        for file in engine.files:
            path = folder / file.relative()
            path.parent.mkdir(parents=True, exist_ok=True)
            await self._blobs.download(file.digest, path, report, file.size_bytes)
            before += file.size_bytes
        if engine.manifest_digest and not (folder / MANIFEST).exists():
            await self._blobs.download(engine.manifest_digest, folder / MANIFEST)

    async def _whole(self, engine: Engine | str) -> Engine:
        return engine if isinstance(engine, Engine) else await self.get(engine)


async def _known(target: Path, engine: Engine) -> Path:
    """What was there before, when it is the engine.

    Raises:
        AlreadyExistsError: it is something else.
    """
    if await asyncio.to_thread(_holds, target, engine):
        return target
    raise AlreadyExistsError(f"{target} exists and is not engine {engine.id}: choose another directory")


def _is_empty(target: Path) -> bool:
    return target.is_dir() and next(target.iterdir(), None) is None


def _holds(folder: Path, engine: Engine) -> bool:
    """Whether a folder holds every file of the engine, unchanged."""
    digests: Mapping[Path, str] = {folder / file.relative(): file.digest for file in engine.files}
    return folder.is_dir() and all(path.is_file() and digest_of(path) == want for path, want in digests.items())
