"""The benchmark of TensorFlow and TF-TRT: what it asks to be built, what it measures again, and its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from tf_trt import run  # noqa: E402
from tf_trt.clients import Client  # noqa: E402
from tf_trt.graphs import drawn, graph_path  # noqa: E402
from tf_trt.modes import MODES, Mode  # noqa: E402


def test_engines_are_built_for_what_is_asked() -> None:
    half, int8 = MODES["tf-trt-fp16"].build(128, (1, 8, 256)), MODES["tf-trt-int8"].build(128, (1, 8))
    assert half["options"] == {"batches": "1,8,128"} and half["profile"] == {"min": 1, "opt": 128, "max": 128}
    assert int8["options"] == {} and int8["synthetic"]["samples"] >= 128
    assert "synthetic" not in half
    assert len({mode.engine for mode in MODES.values()}) == 5, "TensorFlow's three modes run one engine"


def test_the_cpu_is_spared_large_batches_and_has_no_device_to_copy_to() -> None:
    cpu, gpu = MODES["tensorflow-cpu-fp32"], MODES["tensorflow-gpu-fp32"]
    assert cpu.batches((1, 32, 128)) == (1, 32) and cpu.scopes == ("host",)
    assert gpu.batches((1, 32, 128)) == (1, 32, 128) and gpu.scopes == ("engine", "host")


@pytest.mark.parametrize("network", run.NETWORKS)
def test_every_network_has_a_small_graph(network: str) -> None:
    assert graph_path(network).stat().st_size < 1 << 16


def test_weights_are_the_same_each_time_and_within_their_range() -> None:
    entry = {"shape": [64, 64], "mean": 1.0, "deviation": 2.0, "least": 0.01, "most": 4.0}
    values = drawn("variance", entry)
    assert values.dtype == np.float32 and values.min() >= np.float32(0.01) and values.max() <= 4
    np.testing.assert_array_equal(values, drawn("variance", entry))
    assert not np.array_equal(values, drawn("another", entry))


def test_points_that_have_a_row_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.metadata, "version", lambda name: "2.14.1")
    given = ["--work", str(tmp_path / "w"), "--out", str(tmp_path / "o"), "--batches", "1,8"]
    mode = MODES["tf-trt-fp16"]
    assert len(run.Run(run.arguments_of(given)).missing("vgg16", mode)) == 4
    row = {"variant": f"vgg16-{mode.name}", "batch": 8, "scope": "host", "instances": 1}
    (tmp_path / "o" / "rows.jsonl").write_text(json.dumps(row) + "\n" + '{"variant": "cut')
    missing = run.Run(run.arguments_of(given)).missing("vgg16", mode)
    assert [(point.batch, point.scope) for point in missing] == [(1, "engine"), (1, "host"), (8, "engine")]


def test_what_is_unknown_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.arguments_of(["--work", "w", "--out", "o", "--models", "vgg16,alexnet"])
    assert "alexnet" in capsys.readouterr().err


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    """A real process: this Python has no TensorFlow."""
    client = Client(Mode("m", "m", "tensorflow", "FP32", "cpu"), tmp_path / "net" / "engine", tmp_path, 60.0)
    try:
        with pytest.raises(RuntimeError, match="needs tensorflow"):
            client.answer()
    finally:
        client.close()
