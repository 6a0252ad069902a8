"""Versions of environments: a worker that is installed again while the service runs is another one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from enginehouse_optimizer.pipeline import versions as versions_module
from enginehouse_optimizer.pipeline.versions import EnvironmentVersions

from enginehouse.errors import FailedPreconditionError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments

FAKE_WORKER = Path(__file__).parents[1] / "workers" / "fake_worker"


async def test_changed_sources_of_an_installed_worker_are_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FAKE_WORKER, tmp_path / "site")
    monkeypatch.delenv("ENGINEHOUSE_WORKER_PATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    python = Path(sys.executable)
    versions = EnvironmentVersions(WorkerEnvironments(tmp_path, {"one": WorkerEnvironment("one", python)}))
    first = await versions.of(["one"])
    assert set(first) == {"one", "cpu", "gpu", "driver"}
    with (tmp_path / "site" / "enginehouse_worker" / "__init__.py").open("a") as file:
        file.write("# fixed\n")
    assert await versions.of(["one"]) == first, "believed for a while"
    monkeypatch.setattr(versions_module, "_FRESH_SECONDS", 0.0)
    assert (await versions.of(["one"]))["one"] != first["one"]
    shutil.rmtree(tmp_path / "site")
    with pytest.raises(FailedPreconditionError, match="does not work"):
        await versions.of(["one"])
