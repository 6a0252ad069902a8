"""Models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enginehouse.client.values.convert import enum_name, id_of, time_or_none
from enginehouse.v1 import models_pb2 as pb


@dataclass(frozen=True)
class Preprocessing:
    """What stands between a photograph and what a model takes.

    Attributes:
        mean: a value p in [0, 255] of channel c becomes (p - mean[c]) / deviation[c], in the model's order of
            channels; one number serves all. 0 when empty.
        deviation: as above; 1 when empty.
        bgr: the model's channels are blue, green, red.
        central_fraction: the share of a photograph's shorter side, cut from the centre, that fills the input; 0.875
            when 0.
        resampling: "bilinear" (also when empty), "bicubic", "lanczos" or "nearest".
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    bgr: bool = False
    central_fraction: float = 0.0
    resampling: str = ""

    @classmethod
    def from_proto(cls, message: pb.Preprocessing) -> Preprocessing:
        return cls(
            tuple(message.mean), tuple(message.deviation), message.bgr, message.central_fraction, message.resampling
        )

    def to_proto(self) -> pb.Preprocessing:
        return pb.Preprocessing(
            mean=self.mean,
            deviation=self.deviation,
            bgr=self.bgr,
            central_fraction=self.central_fraction,
            resampling=self.resampling,
        )


@dataclass(frozen=True)
class ImportOptions:
    """What a model's file does not say of itself.

    Attributes:
        inputs: names of a frozen graph's input tensors; its placeholders when empty.
        outputs: names of its output tensors; what nothing reads when empty.
        signature: a SavedModel's; "serving_default" when empty.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    signature: str = ""

    @classmethod
    def from_proto(cls, message: pb.ImportOptions) -> ImportOptions:
        return cls(tuple(message.inputs), tuple(message.outputs), message.signature)

    def to_proto(self) -> pb.ImportOptions:
        return pb.ImportOptions(inputs=self.inputs, outputs=self.outputs, signature=self.signature)


@dataclass(frozen=True)
class Zoo:
    """An architecture of the built-in zoo, with random weights made from a seed, or those of a blob.

    `weights` is the blob's digest, empty for random ones; `classes` is 0 for the architecture's own number.
    """

    architecture: str
    seed: int = 0
    weights: str = ""
    classes: int = 0


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
    preprocessing: Preprocessing | None = None
    import_options: ImportOptions | None = None

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
            zoo=_zoo(message.zoo) if has_zoo else None,
            labels=dict(message.labels),
            create_time=time_or_none(message, "create_time"),
            preprocessing=(
                Preprocessing.from_proto(message.preprocessing) if message.HasField("preprocessing") else None
            ),
            import_options=(
                ImportOptions.from_proto(message.import_options) if message.HasField("import_options") else None
            ),
        )


def _zoo(message: pb.ZooSource) -> Zoo:
    return Zoo(message.architecture, message.seed, message.weights, message.classes)
