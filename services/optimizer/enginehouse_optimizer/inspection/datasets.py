"""The door for datasets: looks into an uploaded file as its format asks."""

from __future__ import annotations

from pathlib import Path

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb
from enginehouse_optimizer.inspection.facts import DatasetFacts
from enginehouse_optimizer.inspection.images import inspect_images
from enginehouse_optimizer.inspection.npz import inspect_npz
from enginehouse_optimizer.inspection.tfrecord import inspect_tfrecord

_MAX_FEATURE_NAME = 255


def effective_format(dataset: pb.Dataset) -> pb.DatasetFormat.ValueType:
    """A dataset's format, once what was given with it makes sense.

    Raises:
        InvalidArgumentError: a format that is none, or TFRecord's features for another.
    """
    if dataset.format not in pb.DatasetFormat.values():
        raise InvalidArgumentError(
            f"the dataset has the unknown format {dataset.format}: expected one of DatasetFormat's"
        )
    if dataset.HasField("tfrecord"):
        if dataset.format != pb.DATASET_FORMAT_TFRECORD:
            raise InvalidArgumentError("`tfrecord` names features of a TFRecord: set format to DATASET_FORMAT_TFRECORD")
        for name in (dataset.tfrecord.image, dataset.tfrecord.label):
            if len(name) > _MAX_FEATURE_NAME:
                raise InvalidArgumentError(
                    f"the name of a feature has {len(name)} characters: expected at most {_MAX_FEATURE_NAME}"
                )
    return dataset.format or pb.DATASET_FORMAT_NPZ


def inspect_dataset(path: Path, dataset: pb.Dataset) -> DatasetFacts:
    """Look into a dataset's file.

    Raises:
        InvalidArgumentError: it is not of the format, or one that no stage could use.
    """
    match effective_format(dataset):
        case pb.DATASET_FORMAT_IMAGES:
            return inspect_images(path)
        case pb.DATASET_FORMAT_TFRECORD:
            return inspect_tfrecord(path, dataset.tfrecord.image, dataset.tfrecord.label)
        case _:
            return inspect_npz(path)
