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
class Data:
    """A dataset (its name and its file's digest), or synthetic inputs."""

    dataset: str = ""
    blob: str = ""
    synthetic: Synthetic | None = None

    @property
    def label(self) -> str:
        """What manifests call it."""
        return self.dataset or "synthetic"


@dataclass(frozen=True)
class Calibration:
    """`percentile` is set for that method only; 0 samples are all, a batch size of 0 is the worker's choice."""

    method: str
    data: Data
    percentile: float | None = None
    max_samples: int = 0
    batch_size: int = 0
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """Limits as in the API: a fraction of FP32's top-1, and dB."""

    data: Data
    max_samples: int = 0
    minimum_relative_accuracy: float = 0.99
    minimum_sqnr_db: float = 10.0


@dataclass(frozen=True)
class Target:
    """`precision` is a name such as "INT8"; `profile` is (min, opt, max) batch sizes."""

    backend: str
    precision: str
    profile: tuple[int, int, int] = (1, 8, 64)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInput:
    """The model: its name, its digest, and either an uploaded file or a zoo architecture with its seed."""

    name: str
    digest: str
    blob: str = ""
    file_name: str = ""
    architecture: str = ""
    seed: int = 0

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

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Inputs:
        """Read what `to_json` wrote."""
        value = json.loads(text)
        calibration = value["calibration"]
        return cls(
            model=ModelInput(**value["model"]),
            targets=tuple(Target(**{**t, "profile": tuple(t["profile"])}) for t in value["targets"]),
            verification=Verification(**{**value["verification"], "data": _data(value["verification"]["data"])}),
            calibration=None
            if calibration is None
            else Calibration(
                **{**calibration, "data": _data(calibration["data"]), "exclude": tuple(calibration["exclude"])}
            ),
            layout=value["layout"],
        )


def _data(value: dict[str, Any]) -> Data:
    synthetic = value["synthetic"]
    return Data(value["dataset"], value["blob"], None if synthetic is None else Synthetic(**synthetic))
