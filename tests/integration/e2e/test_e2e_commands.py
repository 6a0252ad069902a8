"""A SavedModel and a folder of images to answers, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import enginehouse
from image_files import pixels, write_folder
from model_files import DEVIATION, MEAN

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow, pytest.mark.timeout(900)]


def test_from_a_saved_model_to_answers(home: Path, tensorflow_models: Path, tmp_path: Path) -> None:
    images, labels = pixels(24)
    write_folder(tmp_path / "photographs", images, labels)
    mean = ",".join(f"{value:g}" for value in MEAN)
    uploaded = enginehouse(
        *[home, "models", "upload", str(tensorflow_models / "saved_model"), "--name", "colours"],
        *["--mean", mean, "--deviation", f"{DEVIATION:g}", "--central-fraction", "1"],
    )
    assert "uploaded colours (saved_model" in uploaded.stderr
    said = enginehouse(home, "datasets", "upload", "photographs", cwd=tmp_path).stderr
    assert "24 samples" in said
    done = enginehouse(
        *[home, "optimize", "colours", "--precision", "fp32", "--precision", "int8", "--batch", "1:4:8"],
        *["--calibration-data", "photographs", "--method", "percentile", "--percentile", "99.9", "--per-layer"],
    )
    # Where nothing is live, a line a stage; `optimize` follows its job unless it is detached.
    for stage in ("freeze", "convert", "prepare photographs", "calibrate", "quantize onnxruntime", "layers"):
        assert f"{stage}" in done.stderr, done.stderr
    listed = json.loads(enginehouse(home, "engines", "list", "--json").stdout)
    fp32, int8 = sorted(listed, key=lambda engine: str(engine["precision"]))
    assert int8["verification"]["top1"] >= 0.95 and fp32["verification"]["top1"] == 1.0
    assert int8["id"] in done.stdout and int8["id"] in enginehouse(home, "engines", "list").stdout
    shown = enginehouse(home, "engines", "show", int8["id"]).stdout
    assert "INT8" in shown.upper() and "onnxruntime" in shown and "-1" in shown
    assert "first" in enginehouse(home, "engines", "show", int8["id"], "--layers").stdout
    table = enginehouse(home, "calibration", "show", int8["id"]).stdout
    assert "percentile 99.9, 24 samples" in table
    enginehouse(home, "engines", "alias", "colours:prod", int8["id"])
    enginehouse(home, "load", "colours", "colours:prod")
    fresh, expected = pixels(5, seed=2)
    np.save(tmp_path / "some.npy", ((fresh - np.array(MEAN, np.float32)) / np.float32(DEVIATION)).astype(np.float32))
    answer = json.loads(enginehouse(home, "infer", "colours", "--input", "some.npy", "--json", cwd=tmp_path).stdout)
    ((_, scores),) = answer["outputs"].items()
    assert np.array(scores["data"]).argmax(axis=1).tolist() == expected.tolist()
    shown = enginehouse(home, "jobs", "list").stdout
    assert "succeeded" in shown and "colours" in shown
    assert "0 findings" in enginehouse(home, "store", "fsck").stderr
