"""Typed access to the paper's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from enginehouse.errors import InvalidArgumentError


@dataclass(frozen=True)
class PaperMode:
    """One row of the paper's table of inference modes. `device` is "cpu" or "gpu"."""

    name: str
    implementation: str
    device: str
    precision: str


@dataclass(frozen=True)
class StatedValue:
    """An absolute value that the paper states, measured on its own hardware. None is what it does not state.

    Latencies are milliseconds; `latency_ms_within` is an upper bound, `latency_ms_about` approximate; `batch_below`
    is exclusive.
    """

    id: str
    mode: str
    model: str
    batch: int | None = None
    batch_below: int | None = None
    images_per_second: float | None = None
    latency_ms: float | None = None
    latency_ms_within: float | None = None
    latency_ms_about: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A ratio or an ordering that a run can confirm or refute. `ratio` is None where the claim names none."""

    id: str
    text: str
    ratio: float | None = None


@dataclass(frozen=True)
class Paper:
    """All facts. `system` and `workflows` are as in the file."""

    title: str
    publisher: str
    date: str
    tests_run: str
    system: Mapping[str, Any]
    task: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    modes: tuple[PaperMode, ...]
    values: tuple[StatedValue, ...]
    claims: tuple[Claim, ...]
    telemetry_fields: tuple[str, ...]
    workflows: Mapping[str, Any]

    def mode(self, name: str) -> PaperMode | None:
        """The mode of that name, or None when the paper has no such mode."""
        return next((mode for mode in self.modes if mode.name == name), None)


def load_paper(path: Path | None = None) -> Paper:
    """The facts in `path`, or the packaged ones.

    Raises:
        InvalidArgumentError: the file is not of the expected form; names the file and the key.
        OSError: the file cannot be read.
    """
    import yaml

    if path is None:
        label, text = "claims.yaml", resources.files("enginehouse.paper").joinpath("claims.yaml").read_text("utf-8")
    else:
        label, text = str(path), path.read_text("utf-8")
    try:
        return _paper(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"{label}: not YAML: {error}") from error
    except KeyError as error:
        raise InvalidArgumentError(f"{label}: key {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"{label}: not of the form of the paper's facts: {error}") from error


def _paper(data: Mapping[str, Any]) -> Paper:
    source, workload = data["source"], data["workload"]
    return Paper(
        title=str(source["title"]),
        publisher=str(source["publisher"]),
        date=str(source["date"]),
        tests_run=str(source["tests_run"]),
        system=data["system"],
        task=str(workload["task"]),
        models=tuple(str(name) for name in workload["models"]),
        batch_sizes=tuple(int(size) for size in workload["batch_sizes_phase_1"]),
        modes=tuple(PaperMode(**mode) for mode in workload["inference_modes"]),
        values=tuple(StatedValue(**value) for value in data["values"]),
        claims=tuple(Claim(**claim) for claim in data["claims"]),
        telemetry_fields=tuple(str(name) for name in data["telemetry_fields"]),
        workflows=data["workflows"],
    )
