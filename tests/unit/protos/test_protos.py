"""The committed generated code is current, and a change that breaks clients is caught."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUF = Path(sys.executable).parent / "buf"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_code_is_current(generator: ModuleType, tmp_path: Path) -> None:
    generator.generate(tmp_path)
    assert generator.differences(tmp_path) == []


def breaking(generator: ModuleType, protos: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    generator.image(tmp_path / "image.binpb", protos)
    command = [BUF, "breaking", tmp_path / "image.binpb", "--against", ROOT / "protos" / "baseline.binpb"]
    return subprocess.run([*command, "--config", ROOT / "buf.yaml"], capture_output=True, text=True)


def test_the_api_is_compatible_with_its_baseline(generator: ModuleType, tmp_path: Path) -> None:
    outcome = breaking(generator, ROOT / "protos", tmp_path)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("telemetry.proto", "string node = 2;", "int32 node = 2;"),
        ("engines.proto", "string key = 2;", ""),
        ("serving.proto", "int32 instances = 4;", "int32 instances = 44;"),
    ],
)
def test_an_incompatible_change_is_caught(generator: ModuleType, tmp_path: Path, file: str, old: str, new: str) -> None:
    changed = tmp_path / "protos"
    shutil.copytree(ROOT / "protos" / "enginehouse", changed / "enginehouse")
    target = changed / "enginehouse" / "v1" / file
    text = target.read_text()
    assert old in text
    target.write_text(text.replace(old, new))
    outcome = breaking(generator, changed, tmp_path)
    assert outcome.returncode != 0 and file in outcome.stdout
