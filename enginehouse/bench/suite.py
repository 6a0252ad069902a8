"""Suites: what a benchmark measures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from enginehouse.bench.modes import Mode


@dataclass(frozen=True)
class ModelSpec:
    """A model to measure: an architecture of the zoo, a file to upload, or a model registered already.

    Attributes:
        name: what rows call it. "{architecture}-{framework}" marks the same network from another training framework.
        zoo: architecture of the built-in zoo, or None.
        seed: of the zoo's random weights.
        file: path of a model file, or None.
        registered: id or resource name of a registered model, or None.
    """

    name: str
    zoo: str | None = None
    seed: int = 0
    file: str | None = None
    registered: str | None = None

    @property
    def source(self) -> str:
        """For people."""
        if self.zoo is not None:
            return f"the zoo's {self.zoo!r}"
        return f"the file {self.file!r}" if self.file is not None else f"the registered model {self.registered!r}"


@dataclass(frozen=True)
class MeasureSpec:
    """How long and how strictly.

    Attributes:
        warmup_seconds: warm up for so long at least; 0 for no warm-up.
        warmup_max_seconds: and for so long at most, when throughput does not become stable.
        window_seconds: length of a window; at least one call fits in any.
        max_windows: of a lane, when it does not become stable.
        max_seconds: of a lane's windows in all.
        agreement: a fraction of the mean: the widest confidence interval, and the largest difference between the first
            and the second half of the windows, of a stable result.
        order: "random" or "fixed", of the lanes in each turn.
    """

    warmup_seconds: float = 1.0
    warmup_max_seconds: float = 30.0
    window_seconds: float = 1.0
    max_windows: int = 30
    max_seconds: float = 120.0
    agreement: float = 0.05
    order: str = "random"


@dataclass(frozen=True)
class CalibrationPlan:
    """The data that INT8 modes are calibrated with: a registered dataset, or synthetic inputs when there is none."""

    method: str = "entropy"
    percentile: float | None = None
    dataset: str | None = None
    distribution: str = "normal"
    samples: int = 32
    seed: int = 0
    max_samples: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Suite:
    """A validated suite. `gpus` is empty for all GPUs of the machine; `concurrency` and `instances` concern the
    served scope."""

    name: str
    models: tuple[ModelSpec, ...]
    modes: tuple[Mode, ...]
    batches: tuple[int, ...]
    description: str = ""
    scopes: tuple[str, ...] = ("host",)
    concurrency: tuple[int, ...] = (1,)
    instances: int = 1
    gpus: tuple[int, ...] = (0,)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    calibration: CalibrationPlan = field(default_factory=CalibrationPlan)
    seed: int = 0

    def batches_of(self, mode: Mode) -> tuple[int, ...]:
        return mode.batches or self.batches

    @property
    def all_batches(self) -> tuple[int, ...]:
        """Every batch size of any mode, ascending."""
        return tuple(sorted({batch for mode in self.modes for batch in self.batches_of(mode)}))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """Digest of everything the suite says."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
