"""Published engines: find them, name them by aliases, read what is known of them, download, export, import them."""

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
from enginehouse.client.resources import PAGE_SIZE, alias_name, all_pages, full_name
from enginehouse.client.values import Alias, Engine, Model
from enginehouse.client.values.engines import precision_value
from enginehouse.errors import AlreadyExistsError, InvalidArgumentError
from enginehouse.v1 import engines_pb2 as pb
from enginehouse.v1 import engines_pb2_grpc

MANIFEST = "manifest.json"
INSPECTOR = "inspector.json"
# A server may have to hash this many seconds before it publishes what it was given.
IMPORT_SECONDS = 600.0


class AsyncEngines:
    """The engines of a project. "{model}:{alias}" stands for an engine wherever one is wanted."""

    def __init__(self, endpoint: Endpoint, blobs: AsyncBlobs, parent: str) -> None:
        self._endpoint = endpoint
        self._blobs = blobs
        self._parent = parent

    async def get(self, engine: Engine | Alias | str) -> Engine:
        """An engine by its name, its id or an alias.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetEngineRequest(name=await self._name(engine))
        return Engine.from_proto(await self._endpoint.unary(self._stub.GetEngine, request))

    async def list(
        self, *, model: Model | str | None = None, backend: str = "", precision: str | None = None, device: str = ""
    ) -> builtins.list[Engine]:
        """The project's engines; only those of a model, a backend, a precision, a device, where given.

        Args:
            device: "cpu" or "gpu", a product ("NVIDIA H200") or a compute capability ("9.0").
        """
        request = pb.ListEnginesRequest(parent=self._parent, page_size=PAGE_SIZE, backend=backend, device=device)
        if model is not None:
            request.model = full_name(model, self._parent, "models")
        if precision is not None:
            request.precision = precision_value(precision)
        found = await all_pages(self._endpoint, self._stub.ListEngines, request, "engines")
        return [Engine.from_proto(engine) for engine in found]

    async def delete(self, engine: Engine | str) -> None:
        """Delete an engine.

        Raises:
            FailedPreconditionError: a serving configuration or an alias names it, or it is pinned.
        """
        request = pb.DeleteEngineRequest(name=await self._name(engine))
        await self._endpoint.unary(self._stub.DeleteEngine, request)

    async def pin(self, engine: Engine | Alias | str, pinned: bool = True) -> Engine:
        """Keep an engine from being deleted and from being collected as garbage; no longer when not `pinned`."""
        request = pb.PinEngineRequest(name=await self._name(engine), pinned=pinned)
        return Engine.from_proto(await self._endpoint.unary(self._stub.PinEngine, request))

    async def set_alias(self, alias: Alias | str, engine: Engine | Alias | str, *, etag: str = "") -> Alias:
        """Make an alias or move it. What is served by it follows, in every inference process, without a gap.

        Args:
            alias: "{model}:{alias}", such as "resnet:prod".
            engine: an engine of that model, or another alias for what that stands for now.
            etag: when given, the alias must not have moved since it was read with it.

        Raises:
            NotFoundError: there is no such engine.
            InvalidArgumentError: it is another model's.
            AbortedError: somebody else moved the alias meanwhile.
            FailedPreconditionError: a configuration that follows the alias cannot serve the engine.
        """
        message = pb.Alias(name=self._alias(alias), engine=await self._name(engine), etag=etag)
        return Alias.from_proto(await self._endpoint.unary(self._stub.SetAlias, pb.SetAliasRequest(alias=message)))

    async def get_alias(self, alias: Alias | str) -> Alias:
        """An alias, with the engine that it stands for now.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetAliasRequest(name=self._alias(alias))
        return Alias.from_proto(await self._endpoint.unary(self._stub.GetAlias, request))

    async def list_aliases(self, model: Model | str | None = None) -> builtins.list[Alias]:
        """The aliases of a model, or of all models."""
        parent = f"{self._parent}/models/-" if model is None else full_name(model, self._parent, "models")
        request = pb.ListAliasesRequest(parent=parent, page_size=PAGE_SIZE)
        found = await all_pages(self._endpoint, self._stub.ListAliases, request, "aliases")
        return [Alias.from_proto(alias) for alias in found]

    async def delete_alias(self, alias: Alias | str) -> None:
        """Forget an alias; its engine stays.

        Raises:
            FailedPreconditionError: a serving configuration names it.
        """
        request = pb.DeleteAliasRequest(name=self._alias(alias))
        await self._endpoint.unary(self._stub.DeleteAlias, request)

    async def export_file(
        self,
        engine: Engine | Alias | str,
        path: str | Path | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write an engine, its manifest, calibration table, logs and tables as one file, for `import_file`.

        The file appears when it is whole. Memory does not grow with the engine. One engine is always the same bytes.

        Args:
            path: the file to make; "{engine id}.engine" here when None.
            overwrite: replace a file of that name.
            progress: told (bytes done, bytes in all).

        Raises:
            AlreadyExistsError: there is a file of that name.
            DataLossError: what came does not match its digest.
        """
        from enginehouse.client.bundles import SUFFIX, export_bundle

        value = await self._whole(engine)
        target = Path(path) if path is not None else Path(f"{value.id}{SUFFIX}")
        await export_bundle(self._blobs, value.manifest_digest, target, overwrite=overwrite, progress=progress)
        return target

    async def import_file(
        self, path: str | Path, *, model_id: str | None = None, progress: Progress | None = None
    ) -> Engine:
        """Publish an engine that `export_file` wrote. Importing it again changes nothing.

        Every byte is checked here and by the server; an upload that broke goes on where it stopped.

        Args:
            model_id: the model to publish it under; the one that it was built from when None.
            progress: told (bytes done, bytes in all).

        Raises:
            InvalidArgumentError: the file is no exported engine.
            DataLossError: it is damaged.
            AlreadyExistsError: the project has an engine of that name with other files.
        """
        from enginehouse.client.bundles import upload_bundle

        if not Path(path).is_file():
            raise InvalidArgumentError(f"there is no file {path}: expected an engine that was exported")
        digest = await upload_bundle(self._blobs, Path(path), progress)
        request = pb.ImportEngineRequest(parent=self._parent, manifest_digest=digest, model_id=model_id or "")
        # The server reads every byte once more.
        return Engine.from_proto(await self._endpoint.unary(self._stub.ImportEngine, request, timeout=IMPORT_SECONDS))

    async def sensitivity(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """What each layer costs of accuracy, and which were left out for it; None where it was not measured."""
        return await self._table((await self._whole(engine)).sensitivity_digest)

    async def layers(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """How each layer compares with FP32; None where verification did not compare layers."""
        return await self._table((await self._whole(engine)).layers_digest)

    async def inspector(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """What the backend says of the layers that it made; None where it says nothing.

        TensorRT, where it builds on a GPU, says `layers` ({name, type, precision, milliseconds, ...}), and the `batch`
        and number of `runs` that they were timed with.
        """
        files = (await self._whole(engine)).files
        return await self._table(next((file.digest for file in files if file.path == INSPECTOR), ""))

    async def not_verified(self, engine: Engine | Alias | str) -> str:
        """Why an engine was published without verification; empty when it was verified."""
        value = await self._whole(engine)
        if value.verification is not None or not value.manifest_digest:
            return ""
        return str((await self.manifest(value)).get("verification", {}).get("not_verified", ""))

    async def manifest(self, engine: Engine | Alias | str) -> dict[str, Any]:
        """The engine's manifest: how it was made, stage by stage, with which tools, and what it measured."""
        digest = (await self._whole(engine)).manifest_digest
        manifest: dict[str, Any] = json.loads(await self._blobs.read(digest))
        return manifest

    async def build_log(self, engine: Engine | Alias | str) -> str:
        """What the backend said while it built the engine; empty when it kept no log."""
        digest = (await self._whole(engine)).build_log_digest
        return (await self._blobs.read(digest)).decode(errors="replace") if digest else ""

    async def download(
        self, engine: Engine | Alias | str, directory: str | Path | None = None, *, progress: Progress | None = None
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

    async def _table(self, digest: str) -> dict[str, Any] | None:
        if not digest:
            return None
        table: dict[str, Any] = json.loads(await self._blobs.read(digest))
        return table

    @property
    def _stub(self) -> Any:
        return self._endpoint.stub(engines_pb2_grpc.EnginesStub)

    def _alias(self, alias: Alias | str) -> str:
        name = alias.name if isinstance(alias, Alias) else alias_name(alias, self._parent)
        if name is None:
            raise InvalidArgumentError(f'alias {alias!r} is not valid: expected "{{model}}:{{alias}}"')
        return name

    async def _name(self, engine: Engine | Alias | str) -> str:
        """The name of an engine, also of one that an alias stands for."""
        if isinstance(engine, Engine):
            return engine.name
        alias = engine.name if isinstance(engine, Alias) else alias_name(engine, self._parent)
        return (await self.get_alias(alias)).engine if alias else full_name(engine, self._parent, "engines")

    async def _whole(self, engine: Engine | Alias | str) -> Engine:
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
