"""One optimizer for the tests that leave it as it was; others start their own. Makes `optimizer_process` importable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from optimizer_process import OptimizerProcess


@pytest.fixture(scope="session")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerProcess]:
    server = OptimizerProcess(tmp_path_factory.mktemp("optimizer"), ENGINEHOUSE_MAX_BLOB_BYTES=str(8 << 20))
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., OptimizerProcess]]:
    """Starts optimizers that end with the test."""
    servers: list[OptimizerProcess] = []

    def make(**variables: str) -> OptimizerProcess:
        servers.append(OptimizerProcess(tmp_path / str(len(servers)), **variables))
        return servers[-1]

    yield make
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.stop()
