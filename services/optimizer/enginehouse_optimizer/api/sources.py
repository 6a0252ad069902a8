"""What stored models and datasets mean to a plan."""

from __future__ import annotations

from collections.abc import Callable

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.names import ResourceName
from enginehouse.v1 import models_pb2 as pb
from enginehouse_optimizer.api.file_kinds import archive_suffix, model_file
from enginehouse_optimizer.pipeline.inputs import Data, ModelInput, Preprocessing, TfRecord
from enginehouse_optimizer.pipeline.zoo import PREPROCESSING

FindModel = Callable[[ResourceName], pb.Model]
FindDataset = Callable[[ResourceName], pb.Dataset]

_MODEL_FORMATS = {
    pb.MODEL_FORMAT_KERAS: "keras",
    pb.MODEL_FORMAT_KERAS_HDF5: "keras_hdf5",
    pb.MODEL_FORMAT_SAVED_MODEL: "saved_model",
    pb.MODEL_FORMAT_FROZEN_GRAPH: "frozen_graph",
    pb.MODEL_FORMAT_ONNX: "onnx",
    pb.MODEL_FORMAT_ZOO: "zoo",
}
_DATA_FORMATS = {
    pb.DATASET_FORMAT_UNSPECIFIED: "npz",
    pb.DATASET_FORMAT_NPZ: "npz",
    pb.DATASET_FORMAT_IMAGES: "images",
    pb.DATASET_FORMAT_TFRECORD: "tfrecord",
}


def model_input(model: pb.Model, *, allow_unsafe: bool) -> ModelInput:
    """A stored model as a plan takes it.

    Raises:
        FailedPreconditionError: it was stored with a format that this version does not know.
    """
    format_name = _MODEL_FORMATS.get(model.format)
    if format_name is None:
        raise FailedPreconditionError(
            f"{model.name} has the format {model.format}, which this version does not know: upload it again"
        )
    if format_name == "zoo":
        zoo = model.zoo
        return ModelInput(
            model.name,
            model.digest,
            architecture=zoo.architecture,
            seed=zoo.seed,
            format=format_name,
            weights=zoo.weights,
            classes=zoo.classes,
            preprocessing=_preprocessing(model) or PREPROCESSING.get(zoo.architecture),
        )
    options = model.import_options
    return ModelInput(
        model.name,
        model.digest,
        model.blob,
        model_file(model.format, model.file_name),
        format=format_name,
        inputs=tuple(options.inputs),
        outputs=tuple(options.outputs),
        signature=options.signature,
        allow_unsafe=allow_unsafe and format_name in ("keras", "keras_hdf5"),
        preprocessing=_preprocessing(model),
    )


def dataset_data(dataset: pb.Dataset) -> Data:
    """A stored dataset as a plan takes it."""
    kind = _DATA_FORMATS[dataset.format]
    if kind == "npz":
        return Data(dataset.name, dataset.blob)
    if kind == "images":
        return Data(
            dataset.name, dataset.blob, format=kind, file_name=f"data{archive_suffix(dataset.file_name) or '.zip'}"
        )
    given = dataset.tfrecord
    defaults = TfRecord()
    features = TfRecord(given.image or defaults.image, given.label or defaults.label, given.label_offset)
    return Data(dataset.name, dataset.blob, format=kind, file_name="data.tfrecord", tfrecord=features)


def check_project(project: str, name: ResourceName, what: str) -> None:
    """Raises InvalidArgumentError when a resource is another project's."""
    if name.project != project:
        raise InvalidArgumentError(f"{what} {name} is not in the request's project: expected one of projects/{project}")


def _preprocessing(model: pb.Model) -> Preprocessing | None:
    if not model.HasField("preprocessing"):
        return None
    given, defaults = model.preprocessing, Preprocessing()
    return Preprocessing(
        mean=tuple(given.mean) or defaults.mean,
        deviation=tuple(given.deviation) or defaults.deviation,
        bgr=given.bgr,
        central_fraction=given.central_fraction or defaults.central_fraction,
        resampling=given.resampling or defaults.resampling,
    )
