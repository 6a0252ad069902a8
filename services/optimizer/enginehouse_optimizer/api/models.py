"""Models and datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import empty_pb2

from enginehouse.artifacts import digest_json, parse_digest
from enginehouse.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from enginehouse.names import ResourceName, check_id, parse, parse_project
from enginehouse.v1 import models_pb2 as pb
from enginehouse.v1 import models_pb2_grpc
from enginehouse_optimizer.api.file_kinds import check_model_file
from enginehouse_optimizer.api.model_checks import check_preprocessing, file_digest, zoo_digest
from enginehouse_optimizer.inspection.datasets import effective_format, inspect_dataset
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.storage.resources import Resources
from enginehouse_optimizer.threads import in_thread

MODELS = "models"
DATASETS = "datasets"
_MAX_FILE_NAME = 255
_MAX_LABELS = 64


class ModelsService(models_pb2_grpc.ModelsServicer):
    """Registers what was uploaded under names."""

    def __init__(
        self, models: Resources[pb.Model], datasets: Resources[pb.Dataset], blobs: ProjectBlobs, jobs: Jobs
    ) -> None:
        self._models = models
        self._datasets = datasets
        self._blobs = blobs
        self._jobs = jobs

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.Model:  # noqa: N802
        name = ResourceName(parse_project(request.parent), MODELS, check_id(request.model_id, "model_id"))
        model = pb.Model(name=str(name), format=request.model.format, file_name=request.model.file_name)
        _check_file_name(model.file_name)
        _copy_labels(request.model.labels, model.labels)
        if request.model.format == pb.MODEL_FORMAT_ZOO:
            await self._set_zoo(name.project, model, request.model)
        else:
            await self._set_blob(name.project, model, request.model)
        if request.model.HasField("preprocessing"):
            check_preprocessing(request.model.preprocessing)
            model.preprocessing.CopyFrom(request.model.preprocessing)
        model.create_time.GetCurrentTime()
        stored = self._models.create(name, model.digest, model, replace=request.allow_replace)
        _check_same(stored, model)
        return stored

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:  # noqa: N802
        return self._models.get(parse(request.name, MODELS))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        page = Page.of(request.page_size, request.page_token)
        models, token = self._models.page(parse_project(request.parent), page)
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        name = parse(request.name, MODELS)
        if self._jobs.uses_model(name.project, str(name)):
            raise FailedPreconditionError(f"{name} is being optimized: cancel or await the operation first")
        self._models.delete(name)
        return empty_pb2.Empty()

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Any) -> pb.Dataset:  # noqa: N802
        name = ResourceName(parse_project(request.parent), DATASETS, check_id(request.dataset_id, "dataset_id"))
        given = request.dataset
        dataset = pb.Dataset(name=str(name), blob=given.blob, file_name=given.file_name, format=effective_format(given))
        if given.HasField("tfrecord"):
            dataset.tfrecord.CopyFrom(given.tfrecord)
        _check_file_name(dataset.file_name)
        _copy_labels(given.labels, dataset.labels)
        path = await self._blob(name.project, dataset.blob)
        facts = await in_thread(inspect_dataset, path, dataset)
        dataset.size_bytes = path.stat().st_size
        dataset.samples, dataset.labelled = facts.samples, facts.labelled
        dataset.classes.extend(facts.classes)
        dataset.create_time.GetCurrentTime()
        return self._datasets.create(name, _dataset_digest(dataset), dataset, replace=request.allow_replace)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.Dataset:  # noqa: N802
        return self._datasets.get(parse(request.name, DATASETS))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:  # noqa: N802
        page = Page.of(request.page_size, request.page_token)
        datasets, token = self._datasets.page(parse_project(request.parent), page)
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._datasets.delete(parse(request.name, DATASETS))
        return empty_pb2.Empty()

    async def _set_zoo(self, project: str, model: pb.Model, given: pb.Model) -> None:
        if given.WhichOneof("source") != "zoo":
            raise InvalidArgumentError("a model of format ZOO needs `zoo`: an architecture and a seed")
        model.digest = zoo_digest(given.zoo)
        if given.zoo.weights:
            path = await self._blob(project, given.zoo.weights)
            model.size_bytes = path.stat().st_size
        model.zoo.CopyFrom(given.zoo)

    async def _set_blob(self, project: str, model: pb.Model, given: pb.Model) -> None:
        if given.format == pb.MODEL_FORMAT_UNSPECIFIED or given.format not in pb.ModelFormat.values():
            raise InvalidArgumentError("the model has no known format: expected one of ModelFormat's")
        if given.WhichOneof("source") != "blob":
            raise InvalidArgumentError("the model has no `blob`: upload its file with WriteBlob and name the digest")
        path = await self._blob(project, given.blob)
        model.file_name = await in_thread(check_model_file, path, given.format, given.file_name)
        model.blob = given.blob
        model.digest = file_digest(given.blob, given.import_options)
        if given.HasField("import_options"):
            model.import_options.CopyFrom(given.import_options)
        model.size_bytes = path.stat().st_size

    async def _blob(self, project: str, digest: str) -> Path:
        parse_digest(digest)
        store = self._blobs.of(project)
        if not await in_thread(store.claim, digest):
            raise FailedPreconditionError(
                f"the blob {digest} is not complete in this project: upload it with WriteBlob first",
                details={"digest": digest},
            )
        return await in_thread(store.path, digest)


def _check_same(stored: pb.Model, given: pb.Model) -> None:
    """Raises AlreadyExistsError when the model that is kept would be run otherwise than the one that was given."""
    other = "another format" if stored.format != given.format else ""
    if given.HasField("preprocessing") and stored.preprocessing != given.preprocessing:
        other = "another preprocessing"
    if other:
        raise AlreadyExistsError(
            f"{given.name} already exists with the same bytes and {other}: use another id, or allow_replace",
            details={"digest": stored.digest},
        )


def _dataset_digest(dataset: pb.Dataset) -> str:
    """What makes two datasets the same: the file and, where it may be read in more than one way, how it is read."""
    if dataset.format == pb.DATASET_FORMAT_NPZ:
        return dataset.blob
    features = dataset.tfrecord
    how = {"image": features.image, "label": features.label, "label_offset": features.label_offset}
    return digest_json({"blob": dataset.blob, "format": pb.DatasetFormat.Name(dataset.format), "tfrecord": how})


def _check_file_name(name: str) -> None:
    if len(name) > _MAX_FILE_NAME:
        raise InvalidArgumentError(f"file_name has {len(name)} characters: expected at most {_MAX_FILE_NAME}")


def _copy_labels(given: Any, target: Any) -> None:
    if len(given) > _MAX_LABELS:
        raise InvalidArgumentError(f"there are {len(given)} labels: expected at most {_MAX_LABELS}")
    target.update(given)
