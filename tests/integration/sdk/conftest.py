"""A stack and a model for the tests here; makes `stack_world` importable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from stack_world import running_stack, tiny_model

from enginehouse import Client


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_stack(tmp_path_factory.mktemp("stack")) as home:
        yield home


@pytest.fixture(scope="module")
def client(stack: Path) -> Iterator[Client]:
    with Client.from_environment({"ENGINEHOUSE_HOME": str(stack)}) as client:
        yield client


@pytest.fixture(scope="module")
def tiny(pytestconfig: pytest.Config) -> Path:
    return tiny_model(pytestconfig)
