"""Models: upload them, or have the optimizer make one of its zoo."""

from __future__ import annotations

import asyncio
import builtins
import tempfile
from collections.abc import Mapping
from pathlib import Path

from enginehouse.client.blobs import AsyncBlobs, Progress
from enginehouse.client.connection import Endpoint
from enginehouse.client.model_files import as_one_file, model_file
from enginehouse.client.model_files import id_from as id_from
from enginehouse.client.resources import PAGE_SIZE, all_pages, full_name
from enginehouse.client.values import ImportOptions, Model, Preprocessing
from enginehouse.errors import NotFoundError
from enginehouse.names import check_id
from enginehouse.v1 import models_pb2 as pb
from enginehouse.v1 import models_pb2_grpc


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
        format: str | None = None,  # noqa: A002 - what it is
        import_options: ImportOptions | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Mapping[str, str] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Upload a model and register it. An upload that broke goes on where it stopped.

        Args:
            path: a .keras, .h5, .pb or .onnx file, a SavedModel's folder, or a .zip, .tar or .tar.gz of a SavedModel or
                of an ONNX model with its data. Data that an .onnx file keeps beside it is found and goes with it.
            model_id: its name in the project; made from the file's name when None.
            format: "keras", "keras_hdf5", "saved_model", "frozen_graph" or "onnx"; found out when None.
            import_options: what the file does not say: inputs and outputs of a frozen graph, a SavedModel's signature.
            preprocessing: what stands between a photograph and the model, for datasets of images.
            labels: anything to find it by.
            replace: replace a model of that name with other bytes, instead of `AlreadyExistsError`.
            progress: told (bytes done, bytes in all).

        Raises:
            InvalidArgumentError: no such file, or a format we do not know.
            AlreadyExistsError: a model of that name has other bytes, or another preprocessing than is given.
        """
        path = Path(path)
        found = await asyncio.to_thread(model_file, path, format)
        model_id = check_id(model_id, "model id") if model_id else id_from(path)
        with tempfile.TemporaryDirectory(prefix="enginehouse-upload-") as folder:
            one = await asyncio.to_thread(as_one_file, found, Path(folder))
            blob = await self._blobs.upload(one, progress)
        model = pb.Model(format=found.format, blob=blob, file_name=found.file_name, labels=dict(labels or {}))
        if import_options is not None:
            model.import_options.CopyFrom(import_options.to_proto())
        return await self._create(model_id, model, preprocessing, replace)

    async def create_zoo(
        self,
        model_id: str,
        architecture: str,
        seed: int = 0,
        *,
        weights: str | Path | None = None,
        classes: int = 0,
        preprocessing: Preprocessing | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Register an architecture of the optimizer's zoo ("vgg16", ...).

        Args:
            seed: of random weights, when no others are given.
            weights: a Keras weights file of this architecture (.weights.h5 or .h5), which is uploaded, or the digest
                ("sha256:...") of one that is.
            classes: their number; the architecture's own when 0.
            preprocessing: the architecture's own when None.
            progress: told (bytes done, bytes in all) of the weights.
        """
        check_id(model_id, "model id")
        source = pb.ZooSource(architecture=architecture, seed=seed, classes=classes)
        if weights is not None:
            digest = isinstance(weights, str) and weights.startswith("sha256:")
            source.weights = str(weights) if digest else await self._blobs.upload(Path(weights), progress)
        model = pb.Model(format=pb.MODEL_FORMAT_ZOO, zoo=source, labels=dict(labels or {}))
        return await self._create(model_id, model, preprocessing, False)

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

    async def _create(
        self, model_id: str, model: pb.Model, preprocessing: Preprocessing | None, replace: bool
    ) -> Model:
        if preprocessing is not None:
            model.preprocessing.CopyFrom(preprocessing.to_proto())
        request = pb.CreateModelRequest(parent=self._parent, model_id=model_id, model=model, allow_replace=replace)
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        return Model.from_proto(await self._endpoint.unary(stub.CreateModel, request))
