"""What a benchmark needs of the rest of the system, as protocols: engines, workers, serving, telemetry, progress."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from enginehouse.bench.modes import Mode
from enginehouse.bench.rows import Accuracy, NotRun, Row
from enginehouse.bench.suite import ModelSpec, Suite


@dataclass(frozen=True)
class Tensor:
    """An input of an engine: `dtype` in the Open Inference Protocol's names, -1 a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """A published engine. `name` is its resource name, `key` the digest of what determines it."""

    name: str
    key: str
    backend: str
    backend_version: str
    precision: str
    device_kind: str
    device_product: str
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    calibration_digest: str | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class Measurement:
    """What a worker measured in one window: a latency for each call, nanoseconds; `inferences` counts samples."""

    latencies_ns: Sequence[int]
    wall_ns: int
    cpu_ns: int
    inferences: int


@dataclass(frozen=True)
class JobStage:
    """A stretch of a job that made an engine, for the run's phases; seconds since the epoch."""

    name: str
    started: float
    ended: float


class EngineSource(Protocol):
    """Where engines come from. Its errors are `EnginehouseError`: the mode is then not run, with the error as
    reason."""

    async def check(self, model: ModelSpec) -> None:
        """Have the model registered.

        Raises:
            EnginehouseError: there is no such model, or it cannot be registered.
        """

    async def reachable(self) -> bool:
        """Whether the optimizer answers."""

    def stages(self, engine: Engine) -> Sequence[JobStage]:
        """The stages that ran to make an engine; none when all were reused."""

    async def engine(self, model: ModelSpec, mode: Mode, suite: Suite) -> Engine:
        """Build (or find) the engine of a model in a mode for the suite's batch sizes."""

    async def download(self, engine: Engine, directory: Path) -> Path:
        """Fetch it; returns the directory a worker loads it from."""


class Worker(Protocol):
    """A worker process with the engines it has loaded."""

    @property
    def pid(self) -> int: ...

    @property
    def software(self) -> Mapping[str, str]:
        """Versions by name: python and the backends of its environment."""

    async def load(self, key: str, directory: Path, *, warmup: Sequence[int], options: Mapping[str, Any]) -> None: ...

    async def measure(self, key: str, *, batch: int, seconds: float, seed: int, scope: str) -> Measurement:
        """Run random inputs back to back; `scope` is "host" or "engine".

        Raises:
            FailedPreconditionError: the backend has no scope "engine".
        """

    async def unload(self, key: str) -> None: ...

    async def close(self) -> None: ...


class Workers(Protocol):
    """Starts workers."""

    def environment(self, mode: Mode) -> str:
        """Name of the worker environment that runs a mode.

        Raises:
            FailedPreconditionError: it is not installed.
        """

    async def start(self, environment: str, device: str) -> Worker:
        """A worker of that environment on "cpu" or "gpu:N"."""


class Serving(Protocol):
    """The inference service, as clients see it."""

    async def publish(self, name: str, engine: Engine, *, instances: int, options: Mapping[str, Any]) -> None:
        """Have the engine served under `name`; returns when it is ready."""

    async def withdraw(self, name: str) -> None: ...

    async def infer(self, name: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """One request over gRPC, to its answer."""

    async def software(self) -> Mapping[str, str]:
        """Name and version of the server."""

    async def reachable(self) -> bool:
        """Whether the inference service answers."""


class TelemetrySource(Protocol):
    """Samples of the devices and the host as JSON objects of telemetry.proto's `Sample`, absent where not reported."""

    def samples(self, period_seconds: float) -> AsyncIterator[Mapping[str, Any]]: ...


class Progress(Protocol):
    """Told of a run's course, from the event loop's thread. Must return at once."""

    def started(self, planned: int, done: int) -> None:
        """So many rows are wanted, and so many of them exist already."""

    def phase(self, name: str) -> None:
        """What happens now, for people."""

    def window(self, lane: str, index: int, inferences_per_second: float) -> None: ...

    def row(self, row: Row) -> None: ...

    def not_run(self, entry: NotRun) -> None: ...

    def finished(self, summary: RunSummary) -> None: ...


@dataclass(frozen=True)
class RunSummary:
    """How a run ended. `rows` counts the directory's rows; `status` is "complete" or "interrupted"."""

    directory: Path
    status: str
    rows: int
    new_rows: int
    not_run: tuple[NotRun, ...]


class SilentProgress:
    """Says nothing."""

    def started(self, planned: int, done: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def window(self, lane: str, index: int, inferences_per_second: float) -> None: ...

    def row(self, row: Row) -> None: ...

    def not_run(self, entry: NotRun) -> None: ...

    def finished(self, summary: RunSummary) -> None: ...


@dataclass(frozen=True)
class Seams:
    """Everything a run is given. None where the suite's scopes do not need it or there is none."""

    engines: EngineSource
    workers: Workers | None = None
    serving: Serving | None = None
    telemetry: TelemetrySource | None = None
    progress: Progress = field(default_factory=SilentProgress)
