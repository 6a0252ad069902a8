"""The benchmark of accuracy: its data, where trained weights go in TensorFlow's graphs, and what its rows say."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from accuracy import data, evaluate, frozen  # noqa: E402
from accuracy.modes import MODES  # noqa: E402
from tf_trt.graphs import graph_path  # noqa: E402


def write_idx(folder: Path, count: int, part: str = "t10k") -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    head = struct.pack(">IIII", 0x803, count, 28, 28)
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">II", 0x801, count) + labels.tobytes())
    )
    return pixels


def test_images_come_upscaled_with_their_labels(tmp_path: Path) -> None:
    pixels = write_idx(tmp_path, 12)
    assert data.write(tmp_path, "t10k", tmp_path / "set", 56, 7) == 7
    with np.load(tmp_path / "set" / "data.npz") as file:
        images, labels = file["x"], file["labels"]
    assert images.shape == (7, 56, 56, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    # By definition: linear between centres of pixels, along one axis and then the other.
    places, centres = (np.arange(56) + 0.5) / 2 - 0.5, np.arange(28)
    rows = np.stack([np.interp(places, centres, line) for line in pixels[3]])
    expected = np.stack([np.interp(places, centres, column) for column in rows.T]).T
    assert np.abs(images[3, :, :, 0] - expected).max() <= 0.501
    assert (images[..., 0] == images[..., 2]).all()


@pytest.mark.parametrize("damage", [b"", b"\0\0\x08\x01", b"\0\0\x08\x03\0\0\0\x0c\0\0\0\x1c\0\0\0\x1c123"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    write_idx(tmp_path, 12)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(damage))
    with pytest.raises(ValueError):
        data.read(tmp_path, "t10k")


def test_absent_data_name_the_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        data.read(tmp_path, "train")


@pytest.mark.parametrize(("network", "kernels"), [("resnet_v1_50", 54), ("inception_v3", 95)])
def test_every_frozen_constant_belongs_to_a_variable_of_its_own(network: str, kernels: int) -> None:
    content = gzip.decompress(graph_path(network).read_bytes())
    (size,) = struct.unpack_from("<I", content)
    constants = list(json.loads(content[4 : 4 + size])["constants"])
    scales = [name.replace("_bn/Cast_2/ReadVariableOp/resource", "_bn/gamma") for name in constants]
    found = [frozen.variable(name, scales, constants) for name in constants]
    assert "" not in found
    assert len(set(found)) == len(found)
    assert sum(name.endswith("/kernel") for name in found) == kernels


def test_the_first_layer_of_a_kind_is_found_under_the_seconds_name() -> None:
    first, second = (f"conv2d_1/convolution/ReadVariableOp/resource{end}" for end in ("", "_2"))
    assert frozen.variable(first, (), (first, second)) == "conv2d/kernel"
    assert frozen.variable(second, (), (first, second)) == "conv2d_1/kernel"
    assert frozen.variable("conv2d_7/convolution/ReadVariableOp/resource", (), ()) == "conv2d_7/kernel"
    assert frozen.variable("avg_pool/Mean/reduction_indices", (), ()) == ""


@pytest.mark.parametrize(("top1", "reaches"), [(0.8911, True), (0.8909, False)])
def test_a_row_says_whether_a_mode_reaches_99_percent(top1: float, reaches: bool) -> None:
    found = {
        "backend_version": "8.6.0", "samples": 10_000, "top1": top1, "top5": 0.99, "reference_top1": 0.9,
        "reference_top5": 0.99, "top1_agreement": 0.98, "sqnr_db": 30.0,
    }  # fmt: skip
    row = evaluate.row_of("resnet_v1_50", MODES["tensorrt-int8"], found, {"time": "now"})
    assert row["reaches_99_percent"] is reaches
    assert evaluate.table([row]).splitlines()[2].split(" | ")[5] == ("yes" if reaches else "no")


def test_a_network_that_was_not_trained_is_listed_and_is_no_row(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "accuracy" / "evaluate.py"), "--work", str(tmp_path)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed = (tmp_path / "out" / "failed.txt").read_text()
    assert "resnet_v1_50" in failed and "run train.py first" in failed
    assert not (tmp_path / "out" / "rows.jsonl").exists()
