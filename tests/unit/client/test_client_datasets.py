"""Datasets of every kind on their way up: what is packed, what it is called, and what is refused first."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from client_servers import PROJECT, Servers

from enginehouse import AsyncClient, TfRecordFeatures
from enginehouse.client.dataset_files import dataset_file, is_dataset_file
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb

FILES = {"dog/b.png": b"1", "dog/a.jpg": b"22", "cat/c.JPEG": b"333"}


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


async def test_a_folder_is_packed_the_same_each_time(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    first = folder(tmp_path / "Photos", {**FILES, "README.md": b"x", ".DS_Store": b"x", "dog/.hidden/x.png": b"x"})
    second = folder(tmp_path / "again", dict(reversed(FILES.items())))
    os.utime(second / "dog" / "b.png", (0, 1))
    one = await client.datasets.upload(first)
    two = await client.datasets.upload(second)
    assert (one.id, one.file_name, one.format) == ("photos", "Photos.zip", "images")
    assert one.blob == two.blob
    with zipfile.ZipFile(io.BytesIO(servers.blobs.whole[one.blob])) as archive:
        assert archive.namelist() == ["cat/c.JPEG", "dog/a.jpg", "dog/b.png"]
        assert archive.read("dog/a.jpg") == b"22"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


async def test_labels_csv_goes_with_the_images(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    files = {"a.png": b"1", "labels.csv": b"a.png,4"}
    uploaded = await client.datasets.upload(folder(tmp_path / "images", files))
    with zipfile.ZipFile(io.BytesIO(servers.blobs.whole[uploaded.blob])) as archive:
        assert archive.namelist() == ["labels.csv", "a.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b"x"}, "holds no images"),
        ({**FILES, "cat/d.heic": b"x"}, "'cat/d.heic' is no image"),
        ({**FILES, "d.png": b"x"}, "'d.png' lies outside the classes' folders"),
        ({"a.png": b"x", "labels.csv": b"b.png,1"}, "lacks 1 images"),
    ],
)
async def test_folders_are_checked_before_they_are_packed(
    files: dict[str, bytes], message: str, client: AsyncClient, servers: Servers, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await client.datasets.upload(folder(tmp_path / "images", files))
    assert not servers.blobs.whole


async def test_tfrecords_say_where_they_keep_what(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "validation-00000-of-00128"
    path.write_bytes(b"records")
    uploaded = await client.datasets.upload(path, tfrecord=TfRecordFeatures(image="jpeg", label_offset=1))
    assert (uploaded.id, uploaded.format) == ("validation-00000-of-00128", "tfrecord")
    assert uploaded.tfrecord == TfRecordFeatures("jpeg", "", 1)
    sent = servers.models.datasets[f"{PROJECT}/datasets/validation-00000-of-00128"]
    assert (sent.tfrecord.image, sent.tfrecord.label_offset) == ("jpeg", 1)
    with pytest.raises(InvalidArgumentError, match="the format is another"):
        await client.datasets.upload(path, format="images", tfrecord=TfRecordFeatures(label_offset=1))


@pytest.mark.parametrize(
    ("name", "found", "stem"),
    [
        ("a.npz", pb.DATASET_FORMAT_NPZ, "a"),
        ("a.b.zip", pb.DATASET_FORMAT_IMAGES, "a.b"),
        ("a.tar", pb.DATASET_FORMAT_IMAGES, "a"),
        ("A.TAR.GZ", pb.DATASET_FORMAT_IMAGES, "A"),
        ("a.tgz", pb.DATASET_FORMAT_IMAGES, "a"),
        ("a.tfrecord", pb.DATASET_FORMAT_TFRECORD, "a"),
        ("a.tfrecords.gz", pb.DATASET_FORMAT_TFRECORD, "a"),
    ],
)
def test_formats_are_known_by_name(name: str, found: int, stem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    file = dataset_file(path)
    assert (file.format, file.stem, file.file_name) == (found, stem, name)
    assert is_dataset_file(str(path))
    assert dataset_file(path, "tfrecord").format == pb.DATASET_FORMAT_TFRECORD


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"x")
    cases: list[tuple[Any, str]] = [
        ((tmp_path / "none.npz",), "there is no"),
        ((tmp_path / "a.dat",), "or its format said"),
        ((tmp_path / "a.dat", "numpy"), "unknown dataset format 'numpy': expected one of npz, images, tfrecord"),
        ((tmp_path, "tfrecord"), "join a TFRecord's parts"),
    ]
    for arguments, message in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            dataset_file(*arguments)


def test_a_bare_name_is_an_id_also_where_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert not is_dataset_file("digits")
    assert is_dataset_file("digits/") and is_dataset_file("./digits")
    assert not is_dataset_file("projects/default/datasets/digits")
