"""Arrays of every kind as a model's samples: pixels through preprocessing, text tokens, damaged files."""

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginehouse_worker.backends.base import Signature, TensorSpec
from enginehouse_worker.data.preprocessing import Preprocessing, read_preprocessing
from enginehouse_worker.data.spread import spread, spread_over
from enginehouse_worker.datasets import open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.npy import NpyMember, Rows, write_npz_rows
from enginehouse_worker.stages.params import Params
from image_data import uploaded
from stages import write_dataset

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "150"))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)


def model(*inputs: tuple[str, str, tuple[int, ...]]) -> Signature:
    return Signature(tuple(TensorSpec(*spec) for spec in inputs), (), batched=True)


LAST = model(("image", "FP32", (-1, 6, 7, 3)))
FIRST = model(("image", "FP32", (-1, 3, 6, 7)))


@pytest.mark.parametrize("signature", [LAST, FIRST])
@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_go_through_preprocessing(signature: Signature, bgr: bool, tmp_path: Path) -> None:
    mean, deviation = (123.68, 116.78, 103.94), (58.4, 57.1, 57.4)
    data = write_dataset(tmp_path / "data", x=PIXELS)
    opened = open_dataset(data, None, signature, None, Preprocessing(mean, deviation, bgr))
    found = np.concatenate([batch["image"] for batch in opened.batches(2)])
    values = (PIXELS[..., ::-1] if bgr else PIXELS).astype(np.float64)
    expected = (values - np.array(mean)) / np.array(deviation)
    expected = expected if signature is LAST else expected.transpose(0, 3, 1, 2)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_pixels_without_preprocessing_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", x=PIXELS)
    with pytest.raises(WorkerError, match=r"dtype uint8.*takes float32.*preprocessing"):
        open_dataset(data, None, LAST, None)


def test_pixels_for_a_model_that_takes_pixels_stay_as_they_are(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", image=PIXELS)
    opened = open_dataset(data, None, model(("image", "UINT8", (-1, 6, 7, 3))), None, Preprocessing((127.0,)))
    (batch,) = opened.batches(8)
    np.testing.assert_array_equal(batch["image"], PIXELS)
    assert "preprocessing" not in opened.describe()


def test_arrays_that_are_ready_do_not_go_through_preprocessing(tmp_path: Path) -> None:
    ready = PIXELS.astype(np.float32)
    data = write_dataset(tmp_path / "data", image=ready)
    (batch,) = open_dataset(data, None, LAST, None, Preprocessing((127.0,))).batches(8)
    np.testing.assert_array_equal(batch["image"], ready)


def test_pixels_are_channels_last(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", image=np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)))
    with pytest.raises(WorkerError, match="as images, channels last"):
        open_dataset(data, None, FIRST, None, Preprocessing())


def test_several_inputs_of_integers_pass_unchanged(tmp_path: Path) -> None:
    tokens, mask = np.arange(12).reshape(3, 4), np.ones((3, 4), np.int64)
    data = write_dataset(tmp_path / "data", input_ids=tokens, attention_mask=mask)
    signature = model(("input_ids", "INT64", (-1, -1)), ("attention_mask", "INT64", (-1, -1)))
    opened = open_dataset(data, None, signature, None, Preprocessing((127.0,), (64.0,)))
    (batch,) = opened.batches(3)
    np.testing.assert_array_equal(batch["input_ids"], tokens)
    np.testing.assert_array_equal(batch["attention_mask"], mask)


def test_synthetic_images_for_pixels_are_pixels() -> None:
    shapes = {"image": (-1, 40, 30, 3)}
    for distribution in ("images", "normal", "uniform"):
        opened = open_dataset(
            None, {"distribution": distribution, "samples": 4}, model(("image", "UINT8", shapes["image"])), None
        )
        (batch,) = opened.batches(4)
        assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (4, 40, 30, 3))
        assert batch["image"].min() < 40 < 215 < batch["image"].max()
        # Neighbours in an image are alike, in noise they are not.
        steps = np.abs(np.diff(batch["image"].astype(float), axis=2)).mean()
        assert (steps < 40) == (distribution == "images")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mean": [1, 2]}, "'mean' has 2 values for images of 3 channels"),
        ({"deviation": [0]}, "other than 0"),
        ({"mean": "127"}, "expected a list of finite numbers"),
        ({"mean": [float("nan")]}, "expected a list of finite numbers"),
        ({"mean": [True]}, "expected a list of finite numbers"),
        ({"bgr": 1}, "expected true or false"),
        ({"means": [1]}, "did you mean 'mean'"),
        ([], "expected an object"),
    ],
)
def test_wrong_preprocessing_is_explained(value: Any, message: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", x=PIXELS)
    with pytest.raises(WorkerError, match=message):
        open_dataset(
            data, None, LAST, None, read_preprocessing(Params({"preprocessing": value}, ["preprocessing"], ""))
        )


def test_preprocessing_has_defaults() -> None:
    assert read_preprocessing(Params({}, ["preprocessing"], "")) is None
    given = {"preprocessing": {"mean": [], "deviation": []}}
    assert read_preprocessing(Params(given, ["preprocessing"], "")) == Preprocessing((0.0,), (1.0,), False)


def test_rows_are_written_as_numpy_reads_them(tmp_path: Path) -> None:
    parts = [PIXELS[:2], PIXELS[2:]]
    write_npz_rows(tmp_path / "a.npz", {"x": Rows(np.uint8, PIXELS.shape, parts)})
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], PIXELS)
    assert NpyMember(tmp_path / "a.npz", "x.npy").shape == PIXELS.shape
    with pytest.raises(ValueError, match="differ"):
        write_npz_rows(tmp_path / "b.npz", {"x": Rows(np.uint8, PIXELS.shape, parts[:1])})
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000])
def test_every_beginning_is_spread(count: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    for size in (2, 4, 8, 16):
        if size <= count:
            # Neighbours of a beginning of `size` are at most twice their mean distance apart.
            gaps = np.diff([*sorted(order[:size]), count])
            assert gaps.max() <= 4 * count / size


def test_classes_take_turns() -> None:
    labels = [0] * 50 + [1] * 10 + [5] * 3
    order = spread_over(labels, len(labels))
    assert sorted(order) == list(range(63))
    assert sorted(labels[n] for n in order[:9]) == [0, 0, 0, 1, 1, 1, 5, 5, 5]


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    folder = uploaded(tmp_path / "data", b"", "data.npz")
    with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_BZIP2) as archive, archive.open("x.npy", "w") as file:
        np.save(file, PIXELS.astype(np.float32))
    with pytest.raises(WorkerError, match="method 12; expected none or deflate"):
        open_dataset(folder, None, LAST, None)


def test_damaged_files_cost_an_error_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=PIXELS.astype(np.float32), labels=np.arange(5))
        for seed in range(MUTATIONS):
            chance = random.Random(seed)
            changed = bytearray(buffer.getvalue())
            for _ in range(chance.randint(1, 3)):
                place = chance.randrange(len(changed))
                if chance.random() < 0.8:
                    changed[place] ^= 1 << chance.randrange(8)
                else:
                    del changed[place : place + chance.randint(1, 50)]
            data = uploaded(tmp_path / "data", bytes(changed), "data.npz")
            try:
                opened = open_dataset(data, None, LAST, None)
                assert sum(len(batch["image"]) for batch in opened.batches(2)) == opened.samples
            except WorkerError as error:
                assert error.code == "INVALID_ARGUMENT"
                refused += 1
    with capsys.disabled():
        print(f" {2 * MUTATIONS} mutations of .npz files, {refused} refused", end="")
    assert refused
