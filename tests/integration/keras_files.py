"""Small Keras files for tests: made once by TensorFlow (13 s each), then kept in pytest's cache for every session."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

import pytest

from enginehouse.workers.environments import WorkerEnvironments

CONSTRAINTS = Path(__file__).parents[2] / "constraints" / "tensorflow.txt"


def keras_file(config: pytest.Config, environments: WorkerEnvironments, script: str, name: str) -> Path:
    """The file that a script saves at `sys.argv[1]`; made again when the script or the versions change."""
    key = hashlib.sha256(script.encode() + CONSTRAINTS.read_bytes()).hexdigest()[:16]
    assert config.cache is not None
    path = Path(config.cache.mkdir("keras")) / key / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        python = str(environments.environment("tensorflow").python)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / name
            subprocess.run([python, "-c", script, str(made)], check=True, capture_output=True, timeout=120)
            made.replace(path)  # whole, or not there: another worker of the session may make it too
    return path
