"""What a request means, resolved when it came: digests instead of names, defaults filled in.

A job keeps this as JSON, so that it goes on after a restart with the same model and data, whatever their names stand
for by then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from enginehouse.artifacts import canonical_json


@dataclass(frozen=True)
class Synthetic:
    """Named random inputs."""

    distribution: str = "normal"
    samples: int = 32
    seed: int = 0


@dataclass(frozen=True)
class TfRecord:
    """The features of a TFRecord's examples that hold the image and the label, and what counts from 0 in the label."""

    image: str = "image/encoded"
    label: str = "image/class/label"
    label_offset: int = 0


@dataclass(frozen=True)
class Data:
    """A dataset (its name, its file's digest and format), synthetic inputs, or nothing.

    `format` is "npz", "images" or "tfrecord", `file_name` what a stage finds the file under.
    """

    dataset: str = ""
    blob: str = ""
    synthetic: Synthetic | None = None
    format: str = "npz"
    file_name: str = "data.npz"
    tfrecord: TfRecord | None = None

    @property
    def label(self) -> str:
        """What manifests call it."""
        return self.dataset or "synthetic"


@dataclass(frozen=True)
class AutomaticExclusion:
    """Layers left out until the outputs reach `minimum_sqnr_db`; 0 layers or samples: the worker's choice."""

    minimum_sqnr_db: float = 20.0
    max_layers: int = 0
    max_samples: int = 0


@dataclass(frozen=True)
class Calibration:
    """`percentile` is set for that method only; 0 samples are all, a batch size of 0 is the worker's choice.

    `table` is the digest of a table made elsewhere: then there is no data, and the method is the table's.
    """

    method: str
    data: Data
    percentile: float | None = None
    max_samples: int = 0
    batch_size: int = 0
    exclude: tuple[str, ...] = ()
    table: str = ""
    automatic: AutomaticExclusion | None = None


@dataclass(frozen=True)
class Verification:
    """Limits as in the API: a fraction of FP32's top-1, and dB."""

    data: Data
    max_samples: int = 0
    minimum_relative_accuracy: float = 0.99
    minimum_sqnr_db: float = 10.0
    per_layer: bool = False


@dataclass(frozen=True)
class Target:
    """`precision` is a name such as "INT8"; `profile` is (min, opt, max) batch sizes.

    `gpu_product` is the GPU of the cluster to build on; empty for none, and where this machine builds.
    """

    backend: str
    precision: str
    profile: tuple[int, int, int] = (1, 8, 64)
    options: Mapping[str, str] = field(default_factory=dict)
    gpu_product: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """From a photograph to the model's input; `mean` and `deviation` hold one value, or one a channel."""

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    bgr: bool = False
    central_fraction: float = 0.875
    resampling: str = "bilinear"


@dataclass(frozen=True)
class ModelInput:
    """The model: its name, its digest, and either an uploaded file of a format or an architecture of the zoo.

    `format` is "keras", "keras_hdf5", "saved_model", "frozen_graph", "onnx" or "zoo". Of the zoo, `weights` is the
    digest of a weights file (random ones from `seed` without it) and 0 classes are the architecture's own.
    """

    name: str
    digest: str
    blob: str = ""
    file_name: str = ""
    architecture: str = ""
    seed: int = 0
    format: str = "keras"
    weights: str = ""
    classes: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    signature: str = ""
    allow_unsafe: bool = False
    preprocessing: Preprocessing | None = None

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Inputs:
    """Everything that a plan follows from, the versions of the worker environments excepted."""

    model: ModelInput
    targets: tuple[Target, ...]
    verification: Verification
    calibration: Calibration | None = None
    layout: str = "keep"
    fold_preprocessing: bool = False

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Inputs:
        """Read what `to_json` wrote."""
        value = json.loads(text)
        return cls(
            model=_model(value["model"]),
            targets=tuple(Target(**{**t, "profile": tuple(t["profile"])}) for t in value["targets"]),
            verification=Verification(**{**value["verification"], "data": _data(value["verification"]["data"])}),
            calibration=None if value["calibration"] is None else _calibration(value["calibration"]),
            layout=value["layout"],
            fold_preprocessing=value.get("fold_preprocessing", False),
        )


def _model(value: dict[str, Any]) -> ModelInput:
    preprocessing = value.get("preprocessing")
    if preprocessing is not None:
        lists = {name: tuple(preprocessing[name]) for name in ("mean", "deviation")}
        preprocessing = Preprocessing(**{**preprocessing, **lists})
    lists = {name: tuple(value.get(name, ())) for name in ("inputs", "outputs")}
    return ModelInput(**{**value, **lists, "preprocessing": preprocessing})


def _calibration(value: dict[str, Any]) -> Calibration:
    automatic = value.get("automatic")
    return Calibration(
        **{
            **value,
            "data": _data(value["data"]),
            "exclude": tuple(value["exclude"]),
            "automatic": None if automatic is None else AutomaticExclusion(**automatic),
        }
    )


def _data(value: dict[str, Any]) -> Data:
    synthetic, tfrecord = value["synthetic"], value.get("tfrecord")
    return Data(
        **{
            **value,
            "synthetic": None if synthetic is None else Synthetic(**synthetic),
            "tfrecord": None if tfrecord is None else TfRecord(**tfrecord),
        }
    )
