"""A real inference server with real workers, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginehouse.errors import FailedPreconditionError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments

# Test folders are no packages, so their helpers are imported by folder.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "optimizer"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from inference_world import Server, load


@pytest.fixture(scope="session")
def onnx_environment() -> WorkerEnvironment:
    try:
        return WorkerEnvironments.discover().for_backend("onnxruntime")
    except FailedPreconditionError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def models(onnx_environment: WorkerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directories, by model."""
    root = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("build_models.py")
    subprocess.run([onnx_environment.python, script, root], check=True)
    return root


@pytest.fixture(scope="module")
def server(request: Any, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the well-behaved models loaded, shared by a module's tests. Its parameter: fronts."""
    running = Server(tmp_path_factory.mktemp("server"), fronts=str(getattr(request, "param", 1)))
    try:
        client = running.client()
        for name in ("double", "addsub", "text", "half", "scalar", "identity", "slow"):
            load(client, models, name)
        yield running
    finally:
        running.kill()


@pytest.fixture
def client(server: Server) -> Any:
    return server.client()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own; called again with the same name, with the same cache."""
    running: list[Server] = []

    def start(name: str = "server", **settings: str) -> Server:
        running.append(Server(tmp_path / name, **settings))
        return running[-1]

    yield start
    for server in running:
        server.kill()
