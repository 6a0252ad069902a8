"""What to optimize for: targets, calibration, verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.client.values.convert import enum_value
from enginehouse.client.values.engines import BatchProfile, precision_value
from enginehouse.errors import InvalidArgumentError
from enginehouse.names import parse_project
from enginehouse.v1 import optimizer_pb2 as pb

if TYPE_CHECKING:
    from enginehouse.client.values import Dataset


@dataclass(frozen=True)
class Target:
    """One engine to build: for a backend, in a precision, for batch sizes (1 to 64, tuned for 8, when None).

    `gpu_product` is the GPU to build on, as the node label nvidia.com/gpu.product has it; empty: the only one there is.
    """

    backend: str
    precision: str
    profile: BatchProfile | None = None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    gpu_product: str = ""

    def to_proto(self) -> pb.EngineTarget:
        return pb.EngineTarget(
            backend=self.backend,
            precision=precision_value(self.precision),
            profile=self.profile.to_proto() if self.profile else None,
            options={name: option_text(value) for name, value in self.options.items()},
            gpu_product=self.gpu_product,
        )


@dataclass(frozen=True)
class Synthetic:
    """Named synthetic inputs.

    Attributes:
        distribution: "normal" (mean 0, deviation 1), "uniform" ([0, 1)) or "images" (mean 0, deviation 1, smooth as
            photographs; the same pixels whether the model takes channels first or last).
        samples: how many.
        seed: of the random numbers.
    """

    distribution: str = "normal"
    samples: int = 64
    seed: int = 0

    def to_proto(self) -> pb.SyntheticData:
        return pb.SyntheticData(distribution=self.distribution, samples=self.samples, seed=self.seed)


@dataclass(frozen=True)
class AutomaticExclusion:
    """Leaves the layers that cost most accuracy in higher precision.

    Attributes:
        minimum_sqnr_db: until the quantized model's outputs have this SQNR against FP32, in dB, on the calibration
            data; the server's 20 when None.
        max_layers: at most so many layers; a quarter of the quantized ones when 0.
        max_samples: samples that sensitivity is measured on; 16 when 0.
    """

    minimum_sqnr_db: float | None = None
    max_layers: int = 0
    max_samples: int = 0

    def to_proto(self) -> pb.AutomaticExclusion:
        return pb.AutomaticExclusion(
            minimum_sqnr_db=self.minimum_sqnr_db, max_layers=self.max_layers, max_samples=self.max_samples
        )


@dataclass(frozen=True)
class Calibration:
    """How to find the dynamic ranges of activations; needed for INT8 and FP8.

    Attributes:
        method: "entropy", "max", "percentile" or "mse".
        dataset: a dataset, its name or its id. Give this, `synthetic` or `table`.
        synthetic: made-up samples, for a model that comes without data.
        percentile: for the method "percentile", such as 99.99.
        max_samples: at most so many samples of the data; all when 0.
        batch_size: samples run at once; the server's choice when 0.
        exclude: nodes (by name) or operator types that stay in higher precision.
        table: a calibration table made elsewhere, instead of calibrating: its file (Enginehouse's JSON or TensorRT's
            cache), which `optimize` uploads, or the digest of one that is uploaded. The method is then the table's.
        automatic_exclusion: find more such nodes by their sensitivity; not with a table.
    """

    method: str = "entropy"
    dataset: Dataset | str | None = None
    synthetic: Synthetic | None = None
    percentile: float = 0.0
    max_samples: int = 0
    batch_size: int = 0
    exclude: tuple[str, ...] = ()
    table: str | Path | None = None
    automatic_exclusion: AutomaticExclusion | None = None

    def to_proto(self, parent: str) -> pb.CalibrationSpec:
        """The message, with a dataset's id made a name in `parent`."""
        method = enum_value(pb.CalibrationMethod, self.method, "CALIBRATION_METHOD_", "calibration method")
        message = pb.CalibrationSpec(
            method=method,
            percentile=self.percentile,
            max_samples=self.max_samples,
            batch_size=self.batch_size,
            exclude=list(self.exclude),
            automatic_exclusion=self.automatic_exclusion.to_proto() if self.automatic_exclusion else None,
        )
        if self.table is not None:
            if self.dataset is not None or self.synthetic is not None:
                raise InvalidArgumentError("a calibration takes a table or data, not both")
            message.table = str(self.table)
            message.ClearField("method")
        _set_data(message, self.dataset, self.synthetic, parent)
        return message


@dataclass(frozen=True)
class VerificationSpec:
    """What to compare engines with FP32 on, and what to refuse.

    Attributes:
        dataset: a dataset, its name or its id; labels make it measure accuracy.
        synthetic: made-up samples instead.
        max_samples: at most so many samples; all when 0.
        minimum_relative_accuracy: refuse an engine whose top-1 is below this fraction of FP32's (the server's 0.99
            when None; 0 refuses none).
        minimum_sqnr_db: without labels, refuse outputs below this many dB (the server's 10 when None).
        per_layer: also compare each layer of a quantized engine with FP32 (`engines.layers` has the table).
    """

    dataset: Dataset | str | None = None
    synthetic: Synthetic | None = None
    max_samples: int = 0
    minimum_relative_accuracy: float | None = None
    minimum_sqnr_db: float | None = None
    per_layer: bool = False

    def to_proto(self, parent: str) -> pb.VerificationSpec:
        """The message, with a dataset's id made a name in `parent`."""
        message = pb.VerificationSpec(max_samples=self.max_samples, per_layer=self.per_layer)
        if self.minimum_relative_accuracy is not None:
            message.minimum_relative_accuracy = self.minimum_relative_accuracy
        if self.minimum_sqnr_db is not None:
            message.minimum_sqnr_db = self.minimum_sqnr_db
        _set_data(message, self.dataset, self.synthetic, parent)
        return message


def option_text(value: object) -> str:
    """A backend option as the protocol's text: "true" and "false" for truth values, `str()` of anything else."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def dataset_name(dataset: Dataset | str, parent: str) -> str:
    """The full name of a dataset given as a value, a name or an id."""
    if not isinstance(dataset, str):
        return dataset.name
    parse_project(parent)
    return dataset if "/" in dataset else f"{parent}/datasets/{dataset}"


def _set_data(
    message: pb.CalibrationSpec | pb.VerificationSpec,
    dataset: Dataset | str | None,
    synthetic: Synthetic | None,
    parent: str,
) -> None:
    if dataset is not None and synthetic is not None:
        raise InvalidArgumentError("give a dataset or synthetic data, not both")
    if dataset is not None:
        message.dataset = dataset_name(dataset, parent)
    elif synthetic is not None:
        message.synthetic.CopyFrom(synthetic.to_proto())
