"""prepare: image files and TFRecords become the arrays that a model takes."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginehouse_worker.backends.base import Signature, TensorSpec
from enginehouse_worker.data.pixels import Fitting, ImageSize, decode
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.datasets import open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages import prepare
from enginehouse_worker.stages.context import StageContext
from image_data import encoded, example, flat, framed, signature, tarred, uploaded, zipped
from PIL import Image
from stages import run as run_process
from stages import succeed

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "150"))
TWO_CLASSES = {"cat/a.png": flat(10), "cat/b.png": flat(20), "dog/a.png": flat(30)}


def prepared(tmp_path: Path, data: bytes, shape: tuple[int, ...] = (-1, 8, 8, 3), **params: Any) -> dict[str, Any]:
    """The stage's facts, with the arrays it wrote."""
    output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    output.mkdir()
    inputs = {"model": signature(tmp_path / "model", shape), "dataset": uploaded(tmp_path / "upload", data)}
    params = {"format": "images", **params}
    facts = prepare.run(StageContext("prepare", inputs, output, params, lambda fraction, message: None))
    assert sorted(path.name for path in output.iterdir()) == ["data.npz", "dataset.json"]
    with np.load(output / "data.npz") as arrays:
        return {**facts, "directory": output, "x": arrays["x"], "y": arrays.get("labels")}


def refused(tmp_path: Path, data: bytes, code: str = "INVALID_ARGUMENT", **params: Any) -> str:
    with pytest.raises(WorkerError) as caught:
        prepared(tmp_path, data, **params)
    assert caught.value.code == code
    return caught.value.message


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, compress=True)])
def test_folders_are_classes(pack: Any, tmp_path: Path) -> None:
    files = {"photos/README.md": b"notes", **{f"photos/{name}": data for name, data in TWO_CLASSES.items()}}
    done = prepared(tmp_path, pack(files))
    # One of each class in turn: a beginning of the samples stands for all.
    assert done["y"].tolist() == [0, 1, 0]
    assert done["x"][:, 0, 0, 0].tolist() == [10, 30, 20]
    assert (done["x"].dtype, done["x"].shape) == (np.uint8, (3, 8, 8, 3))
    assert (done["samples"], done["labelled"], done["classes"]) == (3, True, 2)


def test_folders_of_numbers_count_as_numbers(tmp_path: Path) -> None:
    done = prepared(tmp_path, zipped({f"{n}/a.png": flat(n) for n in (10, 9, 100)}))
    assert dict(zip(done["x"][:, 0, 0, 0].tolist(), done["y"].tolist(), strict=True)) == {9: 0, 10: 1, 100: 2}


def test_labels_csv_comes_before_folders(tmp_path: Path) -> None:
    table = b'path,label\n"x/a,1.png",7\ny/b.png,3\n'
    done = prepared(tmp_path, zipped({"set/labels.csv": table, "set/x/a,1.png": flat(1), "set/y/b.png": flat(2)}))
    assert dict(zip(done["x"][:, 0, 0, 0].tolist(), done["y"].tolist(), strict=True)) == {1: 7, 2: 3}


def test_one_folder_has_no_labels(tmp_path: Path) -> None:
    done = prepared(tmp_path, zipped({"set/a.png": flat(1), "set/b.png": flat(2)}))
    assert done["y"] is None
    assert not done["labelled"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": flat(1), "cat/b.png": flat(2)}, "'a.png' lies outside the classes' folders"),
        ({"train/cat/a.png": flat(1), "val/cat/b.png": flat(2)}, "in a folder within a class's folder"),
        ({"a.png": flat(1), "b.heic": b"x"}, "'b.heic' is no image"),
        ({"README": b"x"}, "holds no images"),
        ({"a.png": flat(1), "labels.csv": b"b.png,1"}, "lacks 1 images, among them 'a.png'"),
        ({"a.png": flat(1), "labels.csv": b"a.png,1\nb.png,1"}, "not there, among them 'b.png'"),
        ({"a.png": flat(1), "labels.csv": b"a.png,1\na.png,-1"}, "line 2 of labels.csv is 'a.png,-1'"),
        ({"a.png": flat(1), "labels.csv": b"a.png,1\na.png,2"}, "two class indices for 'a.png'"),
        ({"a.png": flat(1), "labels.csv": b"\xff\xfe"}, "cannot be read as UTF-8"),
        ({"../a.png": flat(1)}, "would leave its directory"),
        ({"/a.png": flat(1)}, "would leave its directory"),
        ({"a.png": flat(1)[:50]}, "the image 'a.png' cannot be used: it is damaged or cut short"),
        ({"a.png": b""}, "the image 'a.png' cannot be used: it is no image"),
        ({"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"}, "it is no image of a known format"),
    ],
)
def test_what_is_wrong_is_named(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, zipped(files))


def test_links_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    linked, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    assert "'a.png' is a link" in refused(tmp_path, linked.getvalue())
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    assert "'a.png' is a link" in refused(tmp_path, archive.getvalue())
    data = bytearray(zipped({"a.png": flat(1)}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(tmp_path, bytes(data))


@pytest.mark.parametrize("size", [1000, 1024, 1100])
def test_archives_cut_short_are_refused(size: int, tmp_path: Path) -> None:
    whole = tarred({"a.png": flat(1), "b.png": flat(2)})
    assert "cut short" in refused(tmp_path, whole[:size])
    assert "cut short" in refused(tmp_path, gzip.compress(whole)[:-20])
    assert "cut short" in refused(tmp_path, zipped({"a.png": flat(1)})[:-20])


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb = _png(20000, 20000, zlib.compress(b"\0" * 1000))
    assert "too many pixels" in refused(tmp_path, zipped({"a.png": bomb}))
    packed = gzip.compress(tarred({"a.png": flat(1)}) + b"\0" * (80 << 20))
    assert "made to do harm" in refused(tmp_path, packed, "RESOURCE_EXHAUSTED")
    large = tarfile.TarInfo("a.png")
    large.size = 1 << 40
    assert "expected images of at most" in refused(tmp_path, large.tobuf() + b"\0" * 1024, "RESOURCE_EXHAUSTED")
    claims = tarfile.TarInfo("x")
    claims.type, claims.size = tarfile.XHDTYPE, 32 << 20
    assert "header is larger" in refused(tmp_path, claims.tobuf() + b"\0" * (32 << 20))


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _gradient(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("size", [(400, 320), (320, 400), (256, 256)])
def test_the_crop_is_the_usual_one(size: tuple[int, int]) -> None:
    """The shorter side to 256 pixels, the central 224 of them."""
    image = Image.fromarray(_gradient(*size))
    scale = 256 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    found = decode(encoded(image), "a.png", Fitting(ImageSize(224, 224, 3)))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_proportions_are_kept_for_oblong_inputs() -> None:
    fitting = Fitting(ImageSize(height=100, width=200, channels=3), central_fraction=1.0)
    assert fitting.box(300, 300) == (0, 75, 300, 225)
    assert fitting.box(400, 100) == (100, 0, 300, 100)


def test_modes_become_eight_bits() -> None:
    size = Fitting(ImageSize(4, 4, 3), 1.0, "nearest")
    deep = np.full((4, 4), 0x8080, np.uint16)
    for image in (
        encoded(deep),
        encoded(deep, "TIFF"),
        encoded(Image.new("L", (4, 4), 0x80)),
        encoded(Image.new("RGBA", (4, 4), (0x80, 0x80, 0x80, 0))),
        encoded(Image.new("LA", (4, 4), (0x80, 3))),
        encoded(Image.new("RGB", (4, 4), (0x80,) * 3).quantize(4)),
        encoded(Image.new("CMYK", (4, 4), (0x7F, 0x7F, 0x7F, 0)), "TIFF"),
        encoded(Image.new("RGB", (4, 4), (0x80,) * 3), "WEBP", lossless=True),
    ):
        np.testing.assert_array_equal(decode(image, "a", size), np.full((4, 4, 3), 0x80, np.uint8))
    colours = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), "a", size)
    assert colours[0, 0, 0] < 30 < 220 < colours[0, 0, 1]
    assert decode(encoded(Image.new("1", (4, 4), 1)), "a", size).min() == 255
    with pytest.raises(WorkerError, match="floating-point"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "a", size)


def test_the_orientation_is_honoured() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn right by 90 degrees: what was right is below.
    upright = decode(encoded(pixels, exif=exif), "a", Fitting(ImageSize(8, 4, 3), 1.0, "nearest"))
    assert (upright[:4].max(), upright[4:].min()) == (0, 255)


def test_grey_models_get_grey_images(tmp_path: Path) -> None:
    done = prepared(tmp_path, zipped({"a.png": flat((255, 0, 0))}), shape=(-1, 1, 6, 5))
    assert done["x"].shape == (1, 6, 5, 1)
    assert done["x"][0, 0, 0, 0] == 76


def test_pixels_reach_a_channels_first_model(tmp_path: Path) -> None:
    done = prepared(tmp_path, zipped({"a.png": flat((255, 0, 127))}), shape=(-1, 3, 6, 5))
    spec = Signature((TensorSpec("image", "FP32", (-1, 3, 6, 5)),), (), batched=True)
    data = open_dataset(done["directory"], None, spec, None, Preprocessing((127.0, 0.0, 255.0), (2.0,), bgr=True))
    (batch,) = data.batches(8)
    assert (batch["image"].dtype, batch["image"].shape) == (np.float32, (1, 3, 6, 5))
    assert batch["image"][0, :, 0, 0].tolist() == [0.0, 0.0, 0.0]
    described = data.describe()
    assert described["format"] == "images"
    assert described["digest"] == done["data"]["digest"]
    assert described["preprocessing"] == {"mean": [127.0, 0.0, 255.0], "deviation": [2.0], "bgr": True}


@pytest.mark.parametrize("shape", [(-1, 3, -1, -1), (-1, 8, 8, 4), (-1, 12)])
def test_models_that_take_no_images_are_told(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert ".npz" in refused(tmp_path, zipped({"a.png": flat(1)}), shape=shape)


def test_a_smaller_number_of_samples_is_a_beginning_of_the_larger(tmp_path: Path) -> None:
    files = {
        f"{label}/{n:03}.png": flat((label, n, 0)) for label, count in enumerate((5, 40, 11)) for n in range(count)
    }
    whole = prepared(tmp_path, zipped(files))
    few = prepared(tmp_path, zipped(files), max_samples=15)
    assert (few["samples"], few["available"]) == (15, 56)
    np.testing.assert_array_equal(few["x"], whole["x"][:15])
    assert np.bincount(few["y"]).tolist() == [5, 5, 5]
    # Of a class's files, too, not the first few.
    assert few["x"][few["y"] == 1][:, 0, 0, 1].tolist() == [0, 32, 16, 8, 24]


def test_the_same_images_have_the_same_bytes(tmp_path: Path) -> None:
    one = prepared(tmp_path, zipped(TWO_CLASSES))["directory"]
    other = prepared(tmp_path, tarred(dict(reversed(TWO_CLASSES.items()))))["directory"]
    assert (one / "data.npz").read_bytes() == (other / "data.npz").read_bytes()


RECORDS = [example(image__encoded=flat(n), image__class__label=n + 1, other=0.5) for n in (4, 4, 9)]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_tfrecords_are_read(pack: Any, tmp_path: Path) -> None:
    params = {"format": "tfrecord", "tfrecord": {"label_offset": 1}}
    done = prepared(tmp_path, pack(framed(RECORDS)), **params)
    assert done["y"].tolist() == [4, 9, 4]
    assert done["x"][:, 0, 0, 0].tolist() == [4, 9, 4]
    assert json.loads((done["directory"] / "dataset.json").read_text())["format"] == "tfrecord"


# Two examples that TensorFlow 2.21 wrote: grey images of 2x2 pixels, 5 and 200, labels 1 and 300, and two floats each.
WRITTEN_BY_TENSORFLOW = (
    "owAAAAAAAACzx78uCqABChoKEWltYWdlL2NsYXNzL2xhYmVsEgUaAwoBAQpkCg1pbWFnZS9lbmNvZGVkElMKUQpPiVBORw0KGgoA"
    "AAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVQImWNkZWVlYGBgYmBgYGBgAAAA3gATBEUtGgAAAABJRU5ErkJgggocCgxp"
    "bWFnZS9oZWlnaHQSDBIKCggAAABAAAAAQCYoLCikAAAAAAAAAEETuCgKoQEKGwoRaW1hZ2UvY2xhc3MvbGFiZWwSBhoECgKsAgpk"
    "Cg1pbWFnZS9lbmNvZGVkElMKUQpPiVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVQImWM8ceIEAwMDEwMD"
    "AwMDAwAcSgJcFJ2OWAAAAABJRU5ErkJgggocCgxpbWFnZS9oZWlnaHQSDBIKCggAAABAAAAAQD0Un6E="
)


def test_tensorflows_own_records_are_read(tmp_path: Path) -> None:
    data = base64.b64decode(WRITTEN_BY_TENSORFLOW)
    done = prepared(tmp_path, data, format="tfrecord", tfrecord={"label_offset": 1})
    assert done["x"][:, 0, 0, 0].tolist() == [5, 200]
    assert done["y"].tolist() == [0, 299]
    error = refused(tmp_path, data, format="tfrecord", tfrecord={"label": "image/height"})
    assert "'image/height' (2 float)" in error


def test_tfrecords_without_labels_have_none(tmp_path: Path) -> None:
    records = framed([example(jpeg=flat(3)), example(jpeg=flat(5))])
    assert prepared(tmp_path, records, format="tfrecord", tfrecord={"image": "jpeg", "label": ""})["y"] is None


@pytest.mark.parametrize(
    ("data", "features", "message"),
    [
        (framed(RECORDS)[:-1], {}, "record 2 .* is cut short"),
        (framed(RECORDS)[:5], {}, "record 0 .* cut short in its length"),
        (b"x" * 100, {}, "record 0 .*no TFRecord file"),
        (b"", {}, "no records"),
        (framed([b"\xff\xff"]), {}, "record 0 .* is no tf.train.Example"),
        (
            framed([RECORDS[0], example(other=1)]),
            {},
            r"record 1 .* no feature 'image/encoded'; it has 'other' \(1 int64\)",
        ),
        (framed([example(image__encoded=5)]), {}, r"'image/encoded' \(1 int64\); expected the bytes"),
        (framed([RECORDS[0], example(image__encoded=flat(1))]), {}, "record 1 .* a label in all records or in none"),
        (framed([example(image__encoded=flat(1)), RECORDS[0]]), {}, "record 0 .* a label in all records or in none"),
        (framed(RECORDS), {"label": "class"}, "record 0 .* has no feature 'class'; it has 'image/class/label'"),
        (framed(RECORDS), {"label_offset": 9}, "its label is 5, less the offset 9 -4"),
        (framed([example(image__encoded=b"GIF89a", image__class__label=1)]), {}, "the image 'record 0' cannot be used"),
    ],
)
def test_wrong_tfrecords_are_explained(data: bytes, features: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(tmp_path, data, format="tfrecord", tfrecord=features))


def test_a_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    data = bytearray(framed(RECORDS))
    data[40] ^= 4
    assert "record 0" in refused(tmp_path, bytes(data), format="tfrecord")


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("images", zipped({**TWO_CLASSES, "x/c.jpg": encoded(_gradient(9, 7), "JPEG"), "labels.csv": b""})),
        ("images", zipped({"a.tiff": encoded(_gradient(9, 7), "TIFF"), "b.webp": encoded(_gradient(9, 7), "WEBP")})),
        ("images", tarred({"a/c.gif": encoded(Image.fromarray(_gradient(9, 7)).quantize(), "GIF"), **TWO_CLASSES})),
        ("images", tarred(TWO_CLASSES, compress=True)),
        ("tfrecord", framed(RECORDS)),
        ("tfrecord", gzip.compress(framed(RECORDS), mtime=0)),
    ],
)
def test_mutations_cost_an_error_at_most(form: str, data: bytes, tmp_path: Path, capsys: Any) -> None:
    refusals = 0
    for seed in range(MUTATIONS):
        chance = random.Random(seed)
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            match chance.randrange(3):
                case 0:
                    changed[place] ^= 1 << chance.randrange(8)
                case 1:
                    del changed[place : place + chance.randint(1, 64)]
                case 2:
                    changed[place:place] = chance.randbytes(chance.randint(1, 16))
            if not changed:
                break
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            prepared(folder, bytes(changed), format=form)
        except WorkerError as error:
            assert error.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), error.message
            refusals += 1
    with capsys.disabled():
        print(f" {MUTATIONS} mutations of {form}, {refusals} refused", end="")
    assert refusals


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    model = signature(tmp_path / "model", (-1, 512, 512, 3))
    peaks = []
    for count in (4, 44):
        upload = uploaded(tmp_path / f"upload{count}", zipped({f"{n}.png": flat(n) for n in range(count)}))
        inputs = {"model": model, "dataset": upload}
        done = succeed("prepare", tmp_path / f"out{count}", inputs, format="images", resampling="nearest")
        assert (done.output / "data.npz").stat().st_size > count * 512 * 512 * 3
        peaks.append(done.result["peak_memory_bytes"])
    # 40 images more are 31 MB.
    assert peaks[1] - peaks[0] < 10 << 20
    error = run_process("prepare", tmp_path / "wrong", inputs, format="pictures").error
    assert error["message"].endswith("expected one of images, tfrecord")
