"""Runs stages as their callers do: `python -m enginehouse_worker stage` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Run:
    """A stage's end. `result` is empty when the stage wrote none."""

    status: int
    events: list[dict[str, Any]]
    result: dict[str, Any]
    output: Path
    log: str

    @property
    def error(self) -> dict[str, Any]:
        assert self.status == 1, self.log
        assert not (self.output / "result.json").exists()
        return next(event for event in self.events if event["event"] == "error")


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen[bytes]
    events_fd: int
    output: Path
    log: Path


def start(
    stage: str, output: Path, inputs: dict[str, Path] | None = None, python: str = sys.executable, **params: Any
) -> Started:
    work = Path(tempfile.mkdtemp(dir=output.parent))
    spec = work / "spec.json"
    paths = {name: str(path) for name, path in (inputs or {}).items()}
    spec.write_text(json.dumps({"stage": stage, "inputs": paths, "output": str(output), "params": params}))
    return start_spec(spec, output, python)


def start_spec(spec: Path, output: Path, python: str = sys.executable) -> Started:
    reading, writing = os.pipe()
    log = spec.with_suffix(".log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [python, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", str(writing)],
            pass_fds=[writing],
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
    os.close(writing)
    return Started(process, reading, output, log)


def finish(started: Started) -> Run:
    with os.fdopen(started.events_fd) as file:
        events = [json.loads(line) for line in file]
    status = started.process.wait()
    result = started.output / "result.json"
    return Run(
        status,
        events,
        json.loads(result.read_text()) if result.exists() else {},
        started.output,
        started.log.read_text(errors="replace"),
    )


def run(
    stage: str, output: Path, inputs: dict[str, Path] | None = None, python: str = sys.executable, **params: Any
) -> Run:
    return finish(start(stage, output, inputs, python, **params))


def succeed(
    stage: str, output: Path, inputs: dict[str, Path] | None = None, python: str = sys.executable, **params: Any
) -> Run:
    done = run(stage, output, inputs, python, **params)
    assert done.status == 0, done.log
    fractions = [event["fraction"] for event in done.events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert done.result["seconds"] > 0
    assert done.result["peak_memory_bytes"] > 1 << 20
    return done


def write_dataset(directory: Path, **arrays: np.ndarray) -> Path:
    directory.mkdir()
    np.savez(directory / "data.npz", **arrays)
    return directory
