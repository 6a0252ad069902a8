"""Models: upload them, or have the optimizer make one of its zoo."""

from __future__ import annotations

import asyncio
import builtins
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from enginehouse.client.blobs import AsyncBlobs, Progress
from enginehouse.client.connection import Endpoint
from enginehouse.client.resources import PAGE_SIZE, all_pages, full_name
from enginehouse.client.values import Model
from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.names import check_id
from enginehouse.v1 import models_pb2 as pb
from enginehouse.v1 import models_pb2_grpc

_FORMATS: Mapping[str, pb.ModelFormat.ValueType] = {
    ".keras": pb.MODEL_FORMAT_KERAS,
    ".h5": pb.MODEL_FORMAT_KERAS_HDF5,
    ".hdf5": pb.MODEL_FORMAT_KERAS_HDF5,
    ".pb": pb.MODEL_FORMAT_FROZEN_GRAPH,
    ".onnx": pb.MODEL_FORMAT_ONNX,
    ".tar": pb.MODEL_FORMAT_SAVED_MODEL,
}


class AsyncModels:
    """The models of a project."""

    def __init__(self, endpoint: Endpoint, blobs: AsyncBlobs, parent: str) -> None:
        self._endpoint = endpoint
        self._blobs = blobs
        self._parent = parent

    async def upload(
        self,
        path: str | Path,
        model_id: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Upload a model and register it. An upload that broke goes on where it stopped.

        Args:
            path: a .keras, .h5, .onnx or .pb file, a SavedModel's folder, or a .tar of one.
            model_id: its name in the project; made from the file's name when None.
            labels: anything to find it by.
            replace: replace a model of that name with other bytes, instead of `AlreadyExistsError`.
            progress: told (bytes done, bytes in all).

        Raises:
            InvalidArgumentError: no such file, or a format we do not know.
            AlreadyExistsError: a model of that name has other bytes.
        """
        path = Path(path)
        model_format = format_of(path)
        model_id = check_id(model_id, "model id") if model_id else id_from(path)
        if path.is_dir():
            with tempfile.TemporaryDirectory(prefix="enginehouse-upload-") as folder:
                archive = Path(folder) / f"{path.name}.tar"
                await asyncio.to_thread(_pack, path, archive)
                blob, file_name = await self._blobs.upload(archive, progress), archive.name
        else:
            blob, file_name = await self._blobs.upload(path, progress), path.name
        model = pb.Model(format=model_format, blob=blob, file_name=file_name, labels=dict(labels or {}))
        return await self._create(model_id, model, replace)

    async def create_zoo(
        self, model_id: str, architecture: str, seed: int = 0, *, labels: Mapping[str, str] | None = None
    ) -> Model:
        """Register an architecture of the optimizer's zoo ("vgg16", ...), with random weights from a seed."""
        source = pb.ZooSource(architecture=architecture, seed=seed)
        model = pb.Model(format=pb.MODEL_FORMAT_ZOO, zoo=source, labels=dict(labels or {}))
        return await self._create(check_id(model_id, "model id"), model, False)

    async def ensure_zoo(self, name: str, *, seed: int = 0) -> Model:
        """The model of that name if there is one, else the zoo's architecture of that name, registered under it."""
        try:
            return await self.get(name)
        except NotFoundError:
            return await self.create_zoo(name, name, seed)

    async def get(self, model: Model | str) -> Model:
        """A model by its name or id.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetModelRequest(name=full_name(model, self._parent, "models"))
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        return Model.from_proto(await self._endpoint.unary(stub.GetModel, request))

    async def list(self) -> builtins.list[Model]:
        """All of the project's models."""
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        request = pb.ListModelsRequest(parent=self._parent, page_size=PAGE_SIZE)
        return [Model.from_proto(m) for m in await all_pages(self._endpoint, stub.ListModels, request, "models")]

    async def delete(self, model: Model | str) -> None:
        """Delete a model; its engines stay.

        Raises:
            FailedPreconditionError: an optimization of it runs.
        """
        request = pb.DeleteModelRequest(name=full_name(model, self._parent, "models"))
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        await self._endpoint.unary(stub.DeleteModel, request)

    async def _create(self, model_id: str, model: pb.Model, replace: bool) -> Model:
        request = pb.CreateModelRequest(parent=self._parent, model_id=model_id, model=model, allow_replace=replace)
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        return Model.from_proto(await self._endpoint.unary(stub.CreateModel, request))


def format_of(path: Path) -> pb.ModelFormat.ValueType:
    """The format that a file's name or a folder's content says.

    Raises:
        InvalidArgumentError: there is no such file, or we do not know it.
    """
    if not path.exists():
        raise InvalidArgumentError(f"there is no {path}: expected a model's file or a SavedModel's folder")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return pb.MODEL_FORMAT_SAVED_MODEL
        raise InvalidArgumentError(f"{path} is a folder without saved_model.pb: expected a SavedModel")
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise InvalidArgumentError(
            f"unknown model format {path.name!r}: expected a file that ends in {', '.join(_FORMATS)}, "
            "or a SavedModel's folder"
        ) from None


def id_from(path: Path) -> str:
    """A valid id made from a file's name without its ending.

    Raises:
        InvalidArgumentError: nothing of the name is left.
    """
    stem = path.name if path.is_dir() else path.stem
    made = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:63].rstrip("-._")
    if not made:
        raise InvalidArgumentError(f"no id can be made from {path.name!r}: give one")
    return made


def _pack(folder: Path, archive: Path) -> None:
    """The folder as a tar whose bytes depend on its files alone, so that the same model has the same digest."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                tar.add(path, arcname=str(path.relative_to(folder)), recursive=False, filter=plain)
