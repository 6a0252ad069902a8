"""The door for datasets: what it counts, what it refuses, and that it and the worker have the same rules."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginehouse_optimizer.inspection.crc32c import masked_crc32c
from enginehouse_optimizer.inspection.datasets import inspect_dataset
from enginehouse_optimizer.inspection.examples import Feature, features_of
from enginehouse_optimizer.inspection.facts import DatasetFacts

from enginehouse.datasets import image_listing
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "300"))
IMAGES, TFRECORD, NPZ = pb.DATASET_FORMAT_IMAGES, pb.DATASET_FORMAT_TFRECORD, pb.DATASET_FORMAT_NPZ
WORKER = Path(__file__).parents[3] / "worker"
FOLDERS = {"set/README": b"x", "set/9/a.png": b"1", "set/10/a.jpg": b"22", "set/10/b.jpg": b"333"}


def zipped(files: Mapping[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def framed(records: Iterable[bytes]) -> bytes:
    parts = []
    for data in records:
        length = struct.pack("<Q", len(data))
        parts += [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))]
    return b"".join(parts)


def gzipped(data: bytes, level: int = 9) -> bytes:
    """The same bytes whenever it is asked: they name tests."""
    return gzip.compress(data, level, mtime=0)


def example(image: bytes, label: int | None = None) -> bytes:
    features = [(b"image/encoded", b"\x0a" + _sized(b"\x0a" + _sized(image)))]
    if label is not None:
        features.append((b"image/class/label", b"\x1a" + _sized(b"\x0a" + _sized(bytes([label])))))
    entries = [b"\x0a" + _sized(b"\x0a" + _sized(name) + b"\x12" + _sized(feature)) for name, feature in features]
    return b"\x0a" + _sized(b"".join(entries))


def _sized(data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([len(data)]) + data


def arrays(**given: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **given)
    return buffer.getvalue()


def inspected(
    tmp_path: Path, data: bytes, form: pb.DatasetFormat.ValueType, features: pb.TfRecordFeatures | None = None
) -> DatasetFacts:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return inspect_dataset(path, pb.Dataset(format=form, tfrecord=features))


@pytest.mark.parametrize(
    "data", [zipped(FOLDERS), zipped(FOLDERS, compression=8), tarred(FOLDERS), gzipped(tarred(FOLDERS))]
)
def test_images_are_counted_by_class(data: bytes, tmp_path: Path) -> None:
    assert inspected(tmp_path, data, IMAGES) == DatasetFacts(3, True, ("9", "10"))


def test_a_member_without_a_name_is_damage(tmp_path: Path) -> None:
    stream = io.BytesIO(zipped(FOLDERS))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"1")
    with pytest.raises(InvalidArgumentError, match=r"damaged|leave its directory"):
        inspected(tmp_path, stream.getvalue(), IMAGES)


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: gzipped(tarred(files))])
def test_labels_csv_is_read(pack: Any, tmp_path: Path) -> None:
    files = {"set/a.png": b"1", "set/labels.csv": b"a.png,3\nb.png,0\n", "set/b.png": b"2"}
    assert inspected(tmp_path, pack(files), IMAGES) == DatasetFacts(2, True)
    with pytest.raises(InvalidArgumentError, match=r"not there, among them 'set/b.png'"):
        inspected(tmp_path, pack({name: data for name, data in files.items() if "b.png" not in name}), IMAGES)


@pytest.mark.parametrize("pack", [lambda data: data, gzipped])
def test_records_are_counted(pack: Any, tmp_path: Path) -> None:
    labelled = framed([example(b"x" * n, n) for n in (10, 20, 30)])
    assert inspected(tmp_path, pack(labelled), TFRECORD) == DatasetFacts(3, True)
    assert inspected(tmp_path, pack(framed([example(b"x")])), TFRECORD) == DatasetFacts(1, False)
    with pytest.raises(InvalidArgumentError, match="record 2 of the TFRecord file"):
        inspected(tmp_path, pack(labelled[:-2]), TFRECORD)


def test_arrays_are_counted_whatever_their_number(tmp_path: Path) -> None:
    tokens = {"input_ids": np.zeros((4, 7), np.int64), "attention_mask": np.ones((4, 7), np.int64)}
    assert inspected(tmp_path, arrays(**tokens), pb.DATASET_FORMAT_UNSPECIFIED) == DatasetFacts(4, False)
    assert inspected(tmp_path, arrays(x=np.zeros((4, 2)), labels=np.zeros(4, int)), NPZ) == DatasetFacts(4, True)


def linked(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


def zipped_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def claiming(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, size
    return member.tobuf()


@pytest.mark.parametrize(
    ("form", "data", "message"),
    [
        (IMAGES, b"", "it is no archive"),
        (IMAGES, b"\x89PNG" + b"\0" * 600, "it is no archive"),
        (IMAGES, zipped(FOLDERS)[:-30], "damaged or cut short"),
        (IMAGES, zipped({"../a.png": b"1"}), "would leave its directory"),
        (IMAGES, tarred({"/a.png": b"1"}), "would leave its directory"),
        (IMAGES, tarred({"a\udc80.png": b"1"}), "no UTF-8"),
        (IMAGES, zipped_link(), "is a link"),
        (IMAGES, linked(tarfile.SYMTYPE), "is a link"),
        (IMAGES, linked(tarfile.LNKTYPE), "is a link"),
        (IMAGES, linked(tarfile.CHRTYPE), "is a link"),
        (IMAGES, zipped({"a.png": b"1"}, compression=zipfile.ZIP_LZMA), "method 14; expected deflate"),
        (IMAGES, zipped({"a.exe": b"1"}), "'a.exe' is no image"),
        (IMAGES, zipped({f"{n:05}/a.png": b"" for n in range(10_001)}), "10001 folders of classes"),
        (IMAGES, tarred({"a.png": b"1", "b.png": b"1"})[:1100], "it has no end"),
        (IMAGES, tarred({"a.png": b"1", "b.png": b"1"})[:1024], "it has no end"),
        (IMAGES, gzipped(tarred({"a.png": b"1", "b.png": b"1"})[:1024]), "it has no end"),
        (IMAGES, claiming(tarfile.REGTYPE, 1 << 40), "expected at most|unpacks to more"),
        (IMAGES, claiming(tarfile.XHDTYPE, 8 << 20) + b"\0" * (8 << 20), "header is larger"),
        (IMAGES, gzipped(claiming(tarfile.REGTYPE, 200 << 20) + b"\0" * (200 << 20), 1), "unpacks to more"),
        (TFRECORD, b"", "no records"),
        (TFRECORD, b"\0" * 100, "checksum of the length of record 0"),
        (TFRECORD, framed([b"\x0f"]), "record 0 .* no tf.train.Example"),
        (TFRECORD, framed([b""]), "no feature 'image/encoded' .* it has none"),
        (NPZ, zipped(FOLDERS), "which is no array; is it an archive of images"),
        (NPZ, b"x" * 100, "it is damaged|no .npz"),
    ],
)
def test_what_is_wrong_is_named(form: pb.DatasetFormat.ValueType, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        inspected(tmp_path, data, form)


def test_directories_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    entry = b"PK\3\4" + b"\0" * 26
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 300 << 20, 0, 0)
    path = tmp_path / "upload"
    with path.open("wb") as file:
        file.write(entry)
        file.seek(400 << 20)
        file.write(end)
    for form, limit in ((IMAGES, "500000"), (NPZ, "256")):
        with pytest.raises(InvalidArgumentError, match=f"more than {limit} files"):
            inspect_dataset(path, pb.Dataset(format=form))


def test_features_are_named(tmp_path: Path) -> None:
    data = framed([example(b"x", 1)])
    with pytest.raises(InvalidArgumentError, match=r"no feature 'jpeg' .* 'image/class/label' \(int64\), 'image/enc"):
        inspected(tmp_path, data, TFRECORD, pb.TfRecordFeatures(image="jpeg"))
    with pytest.raises(InvalidArgumentError, match="no feature 'class' with an integer"):
        inspected(tmp_path, data, TFRECORD, pb.TfRecordFeatures(label="class"))
    with pytest.raises(InvalidArgumentError, match="set format to DATASET_FORMAT_TFRECORD"):
        inspected(tmp_path, data, NPZ, pb.TfRecordFeatures(label="class"))


def test_examples_are_read_as_protobuf_reads_them() -> None:
    unknown = b"\x10\x05" + example(b"x", 1) + b"\x1d\0\0\0\0"
    assert features_of(unknown) == {"image/encoded": Feature.BYTES, "image/class/label": Feature.INT64}


def test_the_checksum_is_castagnolis() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and ascending.
    for data, crc in ((b"\0" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_worker_has_the_same_rules() -> None:
    """Its code is a copy, because it imports nothing of ours; only what the copy says of itself may differ."""
    ours = Path(image_listing.__file__).read_text()
    theirs = (WORKER / "enginehouse_worker" / "data" / "image_listing.py").read_text()
    assert ours.split('"""', 2)[2] == theirs.split('"""', 2)[2]


MUTATED = {
    "zip": (IMAGES, zipped({**FOLDERS, "set/labels.csv": b"9/a.png,1\n10/a.jpg,2\n10/b.jpg,2"}, compression=8)),
    "tar": (IMAGES, tarred(FOLDERS)),
    "tar.gz": (IMAGES, gzipped(tarred(FOLDERS))),
    "tfrecord": (TFRECORD, framed([example(b"x" * 40, 1), example(b"y" * 30, 2)])),
    "tfrecord.gz": (TFRECORD, gzipped(framed([example(b"x" * 40, 1), example(b"y" * 30, 2)]))),
    "npz": (NPZ, arrays(x=np.arange(24.0).reshape(4, 6), labels=np.arange(4))),
}


@pytest.mark.parametrize("kind", MUTATED)
def test_mutations_cost_an_error_at_most(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, data = MUTATED[kind]
    refused = 0
    for seed in range(MUTATIONS):
        changed = mutated(data, random.Random(seed))
        try:
            facts = inspected(tmp_path, changed, form)
            assert facts.samples > 0
        except InvalidArgumentError as error:
            # It must reach the caller: gRPC's messages are UTF-8.
            error.message.encode()
            refused += 1
    with capsys.disabled():
        print(f" {MUTATIONS} mutations of a {kind}, {refused} refused", end="", file=sys.stdout)
    assert refused


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bits flipped, bytes cut out or put in; half of the gzip files hold a mutation and are sound."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0 | 1:
                changed[place] ^= 1 << chance.randrange(8)
            case 2:
                del changed[place : place + chance.randint(1, 64)]
            case 3:
                changed[place:place] = chance.randbytes(chance.randint(1, 16))
        changed = changed or bytearray(b"\0")
    if data[:2] == b"\x1f\x8b" and chance.random() < 0.5:
        inner = bytearray(gzip.decompress(data))
        inner[chance.randrange(len(inner))] ^= 1 << chance.randrange(8)
        return gzipped(bytes(inner), 1)
    return bytes(changed)
