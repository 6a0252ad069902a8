"""A stack and models for the tests here; makes the helpers importable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "sdk"))

from model_files import ONNX, TENSORFLOW, made
from real_stack import stack_with
from stack_world import need_environments

from enginehouse import Client


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
