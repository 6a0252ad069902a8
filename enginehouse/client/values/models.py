"""Models and datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enginehouse.client.values.convert import enum_name, id_of, time_or_none
from enginehouse.v1 import models_pb2 as pb


@dataclass(frozen=True)
class Zoo:
    """An architecture of the built-in zoo, with random weights made from a seed."""

    architecture: str
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """A trained network. `format` is "keras", "keras_hdf5", "saved_model", "frozen_graph", "onnx" or "zoo"."""

    name: str
    format: str
    digest: str
    size_bytes: int = 0
    file_name: str = ""
    blob: str = ""
    zoo: Zoo | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    create_time: datetime | None = None

    @property
    def id(self) -> str:
        """The last part of the name."""
        return id_of(self.name)

    @classmethod
    def from_proto(cls, message: pb.Model) -> Model:
        has_zoo = message.WhichOneof("source") == "zoo"
        return cls(
            name=message.name,
            format=enum_name(pb.ModelFormat, message.format, "MODEL_FORMAT_"),
            digest=message.digest,
            size_bytes=message.size_bytes,
            file_name=message.file_name,
            blob=message.blob,
            zoo=Zoo(message.zoo.architecture, message.zoo.seed) if has_zoo else None,
            labels=dict(message.labels),
            create_time=time_or_none(message, "create_time"),
        )


@dataclass(frozen=True)
class Dataset:
    """Samples to calibrate and verify with: an .npz of an array per model input, and `labels` where there are any."""

    name: str
    blob: str
    samples: int = 0
    labelled: bool = False
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
            samples=message.samples,
            labelled=message.labelled,
            size_bytes=message.size_bytes,
            file_name=message.file_name,
            labels=dict(message.labels),
            create_time=time_or_none(message, "create_time"),
        )
