"""README's examples run as written, in order, in one folder; only the ports are free ones instead of the default."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    subprocess.run(["enginehouse", "down"], cwd=tmp_path, env=variables(), capture_output=True)


def variables() -> dict[str, str]:
    """This interpreter's environment activated, as `source .venv/bin/activate` does."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def address_of(service: str, folder: Path) -> str:
    status = subprocess.run(
        ["enginehouse", "status", "--json"], cwd=folder, env=variables(), capture_output=True, check=True
    )
    return str(next(s["address"] for s in json.loads(status.stdout) if s["name"] == service))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.timeout(1200)
def test_every_example_runs(folder: Path) -> None:
    blocks = BLOCK.findall(README.read_text())
    assert {language for language, _ in blocks} == {"bash", "python"}
    # The stack goes down in the last shell example, and the Python ones need it.
    shell = [text for language, text in blocks if language == "bash"]
    python = [text for language, text in blocks if language == "python"]
    for text in [*shell[:-1], *python, shell[-1]]:
        if text in python:
            command = [sys.executable, "-c", text.replace("127.0.0.1:8001", address_of("inference", folder))]
        else:
            command = [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                text.replace("enginehouse up\n", "enginehouse up --ports auto\n"),
            ]
        done = subprocess.run(command, cwd=folder, env=variables(), capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (folder / "results-mine" / "report.html").exists()
