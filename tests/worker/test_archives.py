"""Archives that strangers made: what is unpacked, and what is refused with which words."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from enginehouse_worker.archives import archive_kind, extract
from enginehouse_worker.errors import WorkerError

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "300"))
CONTENT = {"model/saved_model.pb": b"graph" * 50, "model/variables/variables.index": bytes(range(256)), "empty": b""}


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", **attributes: object) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def make_tar_gz(path: Path, members: dict[str, bytes]) -> Path:
    return make_tar(path, members, "w:gz")


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {"zip": make_zip, "tar": make_tar, "tar.gz": make_tar_gz}
every_kind = pytest.mark.parametrize("kind", MAKERS)


def unpacked(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def refusal(archive: Path, into: Path, **limits: int) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        extract(archive, into, **limits)
    assert archive.name in caught.value.message
    return caught.value


@every_kind
def test_files_come_out_as_they_went_in(kind: str, tmp_path: Path) -> None:
    # A name that says nothing: the content decides.
    archive = MAKERS[kind](tmp_path / "upload.bin", CONTENT)
    assert archive_kind(archive) == kind
    extract(archive, tmp_path / "out")
    assert unpacked(tmp_path / "out") == CONTENT
    assert not any(p.stat().st_mode & 0o111 for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_archives_of_the_usual_tools_are_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / ("n" * 150)).write_bytes(b"x" * 5000)
    for format_ in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=format_) as archive:
            archive.add(source, ".")
        extract(tmp_path / "a.tar", tmp_path / f"out{format_}")
        assert unpacked(tmp_path / f"out{format_}") == unpacked(source)


@every_kind
@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/tmp/escaped", "..\\escaped", "C:/escaped"])
def test_names_that_leave_the_directory_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    error = refusal(MAKERS[kind](tmp_path / "a", {"fine": b"1", name: b"2"}), tmp_path / "in" / "out")
    assert error.code == "INVALID_ARGUMENT"
    assert "would leave the directory" in error.message
    assert not list(tmp_path.rglob("*escaped"))


@pytest.mark.parametrize(
    "type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(type_: bytes, tmp_path: Path) -> None:
    error = refusal(make_tar(tmp_path / "a.tar", {"odd": b""}, type=type_, linkname="/etc/passwd"), tmp_path / "out")
    assert error.code == "INVALID_ARGUMENT"
    assert "'odd'" in error.message and "link" in error.message
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("odd")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "link" in refusal(tmp_path / "a.zip", tmp_path / "out").message


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "a.zip", {"secret": b"x" * 99}).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert "encrypted" in refusal(tmp_path / "a.zip", tmp_path / "out").message


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_named(compression: int, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": b"x" * 99}, compression)
    assert f"method {compression}" in refusal(archive, tmp_path / "out").message


@every_kind
def test_more_bytes_than_allowed_are_refused_while_unpacking(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", {"small": b"1", "large": bytes(3 << 20)})
    error = refusal(archive, tmp_path / "out", max_bytes=2 << 20)
    assert error.code == "RESOURCE_EXHAUSTED"
    assert sum(len(data) for data in unpacked(tmp_path / "out").values()) <= 2 << 20


def test_a_zip_that_understates_its_sizes_writes_no_more_than_it_says(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "a.zip", {"large": bytes(8 << 20)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.index(signature) + offset, 10)
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(tmp_path / "a.zip", tmp_path / "out").code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_by_their_ratio(kind: str, tmp_path: Path) -> None:
    error = refusal(MAKERS[kind](tmp_path / "a", {"zeros": bytes(80 << 20)}), tmp_path / "out")
    assert error.code == "RESOURCE_EXHAUSTED"
    assert "200 times its size" in error.message


@every_kind
def test_too_many_members_are_refused(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", {str(number): b"" for number in range(11)})
    assert "more than 10 members" in refusal(archive, tmp_path / "out", max_files=10).message
    extract(archive, tmp_path / "enough", max_files=11)


def test_a_directory_of_millions_of_members_is_not_read_at_all(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"n"
    count = 60_000
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHLLH", count, count, len(entry) * count, 0, 0)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + entry * count + end)
    assert refusal(tmp_path / "a.zip", tmp_path / "out", max_files=1000).code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("type_", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_header_of_gigabytes_is_not_read_into_memory(type_: bytes, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        info = tarfile.TarInfo("long")
        info.type, info.size = type_, 1 << 32
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(3 << 20))
    assert "header is larger" in refusal(tmp_path / "a.tar.gz", tmp_path / "out").message


@every_kind
def test_contradicting_names_are_refused(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", {"a": b"1", "a/b": b"2"})
    assert "cannot be unpacked" in refusal(archive, tmp_path / "out").message
    archive = MAKERS[kind](tmp_path / "b", {"a": b"1", "./a": b"2"})
    assert "twice" in refusal(archive, tmp_path / "again").message
    archive = MAKERS[kind](tmp_path / "c", {"n" * 300: b"1"})
    assert "cannot be unpacked" in refusal(archive, tmp_path / "long").message
    archive = MAKERS[kind](tmp_path / "d", {"d/" * 40 + "x": b"1"})
    assert "directories deep" in refusal(archive, tmp_path / "deep").message


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x1f\x8b", b"nonsense" * 200, b"BZh9" + bytes(99)])
def test_what_is_no_archive_is_said_to_be_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(tmp_path / "a.zip", tmp_path / "out").code == "INVALID_ARGUMENT"


@every_kind
def test_every_truncation_is_noticed(kind: str, tmp_path: Path) -> None:
    whole = MAKERS[kind](tmp_path / "whole", {"first": os.urandom(700), "second": os.urandom(700)}).read_bytes()
    # A tar's last bytes are zeros of which two blocks end it; the rest may be missing.
    end = len(whole) - (len(whole) - 3072 if kind == "tar" else 0)
    for number, length in enumerate(range(0, end, 97)):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert refusal(tmp_path / "cut", tmp_path / str(number)).code == "INVALID_ARGUMENT"


def test_a_member_without_a_name_is_damage(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "nameless.zip", {"a": b"1", "": b"2"})
    assert refusal(archive, tmp_path / "out").code == "INVALID_ARGUMENT"


@every_kind
def test_mutated_archives_end_in_files_or_in_a_clear_error(kind: str, tmp_path: Path) -> None:
    seeded = random.Random(20)
    whole = MAKERS[kind](tmp_path / "whole", CONTENT).read_bytes()
    ends: Counter[str] = Counter()
    for number in range(MUTATIONS):
        data = bytearray(whole)
        for _ in range(seeded.randint(1, 8)):
            data[seeded.randrange(len(data))] = seeded.randrange(256)
        (tmp_path / "mutated").write_bytes(data)
        out = tmp_path / "area" / str(number) / "out"
        try:
            extract(tmp_path / "mutated", out, max_bytes=1 << 20)
            ends["extracted"] += 1
        except WorkerError as error:
            ends[error.code] += 1
    assert {path.name for path in (tmp_path / "area").glob("*/*")} <= {"out"}
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "mutated", "area"}
    assert ends["INVALID_ARGUMENT"] > MUTATIONS // 10
    print(kind, dict(ends))
