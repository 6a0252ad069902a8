import json
import sys
from pathlib import Path

import pytest

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.workers.environments import WorkerEnvironments


def install(directory: Path, name: str) -> Path:
    python = directory / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


def test_environments_are_found_in_their_folder(tmp_path: Path) -> None:
    python = install(tmp_path, "onnxruntime")
    found = WorkerEnvironments.discover({"ENGINEHOUSE_WORKERS_DIR": str(tmp_path)})
    assert found.for_backend("onnxruntime").python == python
    with pytest.raises(FailedPreconditionError, match=r"'tensorrt' is not installed.*onnxruntime"):
        found.for_backend("tensorrt")


def test_a_variable_overrides_single_environments(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime")
    other = install(tmp_path / "elsewhere", "tensorflow")
    variables = {
        "ENGINEHOUSE_WORKERS_DIR": str(tmp_path),
        "ENGINEHOUSE_WORKERS": json.dumps({"tensorflow": str(other)}),
    }
    found = WorkerEnvironments.discover(variables)
    assert found.environment("tensorflow").python == other
    assert "onnxruntime" in found.installed


def test_an_unknown_backend_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'onnx'.*onnxruntime"):
        WorkerEnvironments.discover({"ENGINEHOUSE_WORKERS_DIR": str(tmp_path)}).for_backend("onnx")


@pytest.mark.parametrize("text", ["{", "[]", '{"tensorflow": "/no/such/python"}'])
def test_a_bad_variable_is_named(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="ENGINEHOUSE_WORKERS"):
        WorkerEnvironments.discover({"ENGINEHOUSE_WORKERS": text})
