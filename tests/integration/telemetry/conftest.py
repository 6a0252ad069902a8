"""The fake library, compiled once; a node with two GPUs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from telemetry_world import HOPPER, TURING, Agent, Control, build, install, running


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, to compile the fake NVML library")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def libraries(tmp_path: Path, library: Path) -> Path:
    folder = tmp_path / "lib"
    install(library, folder)
    return folder


def two_gpus(path: Path) -> Control:
    control = Control(path)
    control.gpu(0, HOPPER)
    control.gpu(1, TURING)
    control.write()
    return control


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return two_gpus(tmp_path / "control.txt")


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Agent]:
    """A service that tests only look at; they share it."""
    folder = tmp_path_factory.mktemp("steady")
    install(library, folder / "lib")
    with running(folder, folder / "lib", two_gpus(folder / "control.txt").path) as agent:
        yield agent


@pytest.fixture
def agent(tmp_path: Path, libraries: Path, control: Control) -> Iterator[Agent]:
    """A service of the test's own, whose GPUs it may change through `control`."""
    with running(tmp_path, libraries, control.path) as agent:
        yield agent
