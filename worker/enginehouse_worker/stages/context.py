"""What a stage is given: its input directories, output directory and parameters, and a way to report progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.errors import WorkerError

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class StageContext:
    """One run of one stage. `params` are as the caller wrote them; each stage reads them with `Params`."""

    stage: str
    inputs: Mapping[str, Path]
    output: Path
    params: Mapping[str, Any]
    progress: Progress

    def input(self, name: str) -> Path:
        """An input directory that the stage cannot do without.

        Raises:
            WorkerError: INVALID_ARGUMENT when it was not given.
        """
        try:
            return self.inputs[name]
        except KeyError:
            given = ", ".join(sorted(self.inputs)) or "none"
            raise WorkerError(
                "INVALID_ARGUMENT", f"{self.stage}: input {name!r} is missing; given inputs: {given}"
            ) from None


@dataclass(frozen=True)
class Stage:
    """A stage as the runner knows it. `run` returns what goes into `result.json` beside what every stage records."""

    name: str
    inputs: tuple[str, ...]
    run: Callable[[StageContext], dict[str, Any]]
    packages: tuple[str, ...]
