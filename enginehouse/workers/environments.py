"""Which Python runs which backend: worker environments, each with a framework of its own (design decision 11).

An environment is a virtual environment at `{workers_dir}/{name}`. `ENGINEHOUSE_WORKERS_DIR` names the folder (default:
`workers` inside the environment that runs this code); `ENGINEHOUSE_WORKERS`, JSON of `{environment: python}`, overrides
single ones.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError

# Backend to environment. Stages name environments directly: freezing is TensorFlow's job whatever the backend.
BACKEND_ENVIRONMENTS: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "tensorflow": "tensorflow",
    "tensorrt": "tensorrt",
    "tf-trt": "tf-trt",
}

# The environment variables that say where worker environments are, and what they mean, for `--help`.
VARIABLES: Mapping[str, str] = {
    "ENGINEHOUSE_WORKERS_DIR": "Folder of the worker environments; `workers` in this Python environment when absent.",
    "ENGINEHOUSE_WORKERS": "JSON of {environment: python} that overrides single ones.",
    "ENGINEHOUSE_WORKER_PATH": "A checkout's `worker` folder, put on the workers' PYTHONPATH; for development.",
}


@dataclass(frozen=True)
class WorkerEnvironment:
    """An interpreter that imports `enginehouse_worker` and a framework."""

    name: str
    python: Path


@dataclass(frozen=True)
class WorkerEnvironments:
    """The environments installed on this machine."""

    directory: Path
    installed: Mapping[str, WorkerEnvironment]

    @classmethod
    def discover(cls, variables: Mapping[str, str] | None = None) -> WorkerEnvironments:
        """Look for environments where the variables (the process's own by default) say.

        Raises:
            InvalidArgumentError: ENGINEHOUSE_WORKERS is not JSON, or names a file that is not there.
        """
        variables = os.environ if variables is None else variables
        directory = Path(variables.get("ENGINEHOUSE_WORKERS_DIR") or Path(sys.prefix) / "workers")
        found = {
            python.parent.parent.name: WorkerEnvironment(python.parent.parent.name, python)
            for python in sorted(directory.glob("*/bin/python"))
        }
        found.update(_overrides(variables.get("ENGINEHOUSE_WORKERS", "")))
        return cls(directory, found)

    def environment(self, name: str) -> WorkerEnvironment:
        """The environment of that name.

        Raises:
            FailedPreconditionError: it is not installed here.
        """
        try:
            return self.installed[name]
        except KeyError:
            raise FailedPreconditionError(
                f"the worker environment {name!r} is not installed: expected an interpreter at "
                f"{self.directory / name / 'bin' / 'python'} (installed: {', '.join(sorted(self.installed)) or '-'}). "
                "In a checkout, `make install` installs onnxruntime and tensorflow; `make workers/tensorrt` "
                "and `make workers/tf-trt` install those, on a machine with a GPU; ENGINEHOUSE_WORKERS names the "
                f'Python of any other, as JSON: {{"{name}": "/path/to/bin/python"}}',
                details={"environment": name},
            ) from None

    def for_backend(self, backend: str) -> WorkerEnvironment:
        """The environment that runs a backend.

        Raises:
            InvalidArgumentError: there is no such backend.
            FailedPreconditionError: its environment is not installed here.
        """
        if backend not in BACKEND_ENVIRONMENTS:
            raise InvalidArgumentError(
                f"unknown backend {backend!r}: expected one of {', '.join(sorted(BACKEND_ENVIRONMENTS))}"
            )
        return self.environment(BACKEND_ENVIRONMENTS[backend])


def _overrides(text: str) -> dict[str, WorkerEnvironment]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(
            f'ENGINEHOUSE_WORKERS is not JSON: expected {{"tensorflow": "/path/to/python"}}, got {text!r} ({error})'
        ) from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f"ENGINEHOUSE_WORKERS is {type(value).__name__}: expected a JSON object of environment to python"
        )
    for name, python in value.items():
        if not Path(str(python)).exists():
            raise InvalidArgumentError(f"ENGINEHOUSE_WORKERS names {python!r} for {name!r}: there is no such file")
    return {str(name): WorkerEnvironment(str(name), Path(str(python))) for name, python in value.items()}
