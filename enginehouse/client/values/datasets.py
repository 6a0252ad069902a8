"""Datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enginehouse.client.values.convert import enum_name, id_of, time_or_none
from enginehouse.v1 import models_pb2 as pb


@dataclass(frozen=True)
class TfRecordFeatures:
    """Where a TFRecord's examples keep what.

    Attributes:
        image: the feature that holds an encoded image; "image/encoded" when empty.
        label: the feature that holds the class index; "image/class/label" when empty, which may be absent.
        label_offset: subtracted from each label; 1 for ImageNet's records, which count from 1.
    """

    image: str = ""
    label: str = ""
    label_offset: int = 0

    @classmethod
    def from_proto(cls, message: pb.TfRecordFeatures) -> TfRecordFeatures:
        return cls(message.image, message.label, message.label_offset)

    def to_proto(self) -> pb.TfRecordFeatures:
        return pb.TfRecordFeatures(image=self.image, label=self.label, label_offset=self.label_offset)


@dataclass(frozen=True)
class Dataset:
    """Samples to calibrate and verify with.

    Attributes:
        format: "npz" (an array per model input, and `labels` where there are any), "images" or "tfrecord".
        blob: the digest of the uploaded file.
        labelled: whether each sample has a class index.
        classes: the classes' names in the order of their indices, where the file has names.
        tfrecord: where a TFRecord keeps what, when it was said.
        labels: anything to find the dataset by.
    """

    name: str
    blob: str
    format: str = "npz"
    samples: int = 0
    labelled: bool = False
    classes: tuple[str, ...] = ()
    tfrecord: TfRecordFeatures | None = None
    size_bytes: int = 0
    file_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    create_time: datetime | None = None

    @property
    def id(self) -> str:
        """The last part of the name."""
        return id_of(self.name)

    @classmethod
    def from_proto(cls, message: pb.Dataset) -> Dataset:
        return cls(
            name=message.name,
            blob=message.blob,
            # Datasets from before there were formats say none.
            format=enum_name(pb.DatasetFormat, message.format or pb.DATASET_FORMAT_NPZ, "DATASET_FORMAT_"),
            samples=message.samples,
            labelled=message.labelled,
            classes=tuple(message.classes),
            tfrecord=TfRecordFeatures.from_proto(message.tfrecord) if message.HasField("tfrecord") else None,
            size_bytes=message.size_bytes,
            file_name=message.file_name,
            labels=dict(message.labels),
            create_time=time_or_none(message, "create_time"),
        )
