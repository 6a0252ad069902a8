"""A whole stack with the real workers for each module; makes the helpers importable."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "sdk"))

from model_files import ONNX, TENSORFLOW, made
from stack_world import need_environments

from enginehouse import Client
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up


@contextmanager
def stack_with(home: Path, **variables: str) -> Iterator[Path]:
    """A stack whose services have these variables, for the length of a block."""
    need_environments()
    # Two stages of tiny models at once take little memory in one environment.
    settings = {"ENGINEHOUSE_ENVIRONMENT_STAGES": '{"onnxruntime": 2}', "PYTHONPATH": os.pathsep.join(sys.path)}
    free = {"optimizer": 0, "inference": 0, "telemetry": 0}
    up(StackOptions(home, free, metrics_port=None, variables={**settings, **variables}))
    try:
        yield home
    finally:
        down(home, timeout=10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with stack_with(tmp_path_factory.mktemp("stack")) as path:
        yield path


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Client]:
    with Client.from_environment({"ENGINEHOUSE_HOME": str(home)}) as client:
        yield client


@pytest.fixture(scope="session")
def onnx_models(pytestconfig: pytest.Config) -> Path:
    need_environments()
    return made(pytestconfig, "onnxruntime", ONNX)


@pytest.fixture(scope="session")
def tensorflow_models(pytestconfig: pytest.Config) -> Path:
    need_environments()
    return made(pytestconfig, "tensorflow", TENSORFLOW)
