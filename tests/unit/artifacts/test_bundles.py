"""Engines as one file: the same bytes every time, checked to the last, and nothing taken from a hostile one."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine_bundles import bundle, engine_files, manifest_of, write_bundle

from enginehouse.artifacts import digest_bytes
from enginehouse.artifacts.bundle import BundleWriter, checksum_line, read_bundle
from enginehouse.artifacts.manifest import MAX_MANIFEST_BYTES
from enginehouse.errors import DataLossError, EnginehouseError, InvalidArgumentError

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "400"))
EXTRA = {"calibration_digest": b"{}", "build_log_digest": b""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bundle(tmp_path / "e.engine", engine_files(), extra=EXTRA)


def test_a_bundle_comes_back(path: Path, tmp_path: Path) -> None:
    found = read_bundle(path)
    assert found.manifest == manifest_of(engine_files(), extra=EXTRA) and found.manifest.digest == found.manifest_digest
    data = path.read_bytes()
    assert len(found.parts) == 5 and found.parts[-1].digest == found.manifest_digest
    for part in found.parts:
        assert digest_bytes(data[part.offset : part.offset + part.size]) == part.digest
    assert bundle(tmp_path / "again", engine_files(), extra=EXTRA).read_bytes() == data, "equal engines, equal files"


def test_it_is_a_plain_tar(path: Path) -> None:
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names[:2] == ["manifest.json", "manifest.sha256"] and names[2:] == sorted(names[2:]) and len(names) == 6
        assert all(member.isreg() for member in tar)


def test_an_engine_that_is_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    files = engine_files(os.urandom((3 << 20) + 7))
    assert read_bundle(bundle(tmp_path / "large", files)).manifest.files.size == sum(map(len, files.values()))


def test_a_writer_does_not_take_other_bytes() -> None:
    for data in (b"other", b"shor"):
        writer = BundleWriter(io.BytesIO())
        writer.begin(digest_bytes(b"right"), 5)
        writer.write(data)
        with pytest.raises(DataLossError):
            writer.end()


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 600, 2000, -1, -512, -1024])
def test_what_is_cut_off(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((DataLossError, InvalidArgumentError), match=r"e\.engine is"):
        read_bundle(path)


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


MANIFEST = manifest_of(engine_files()).to_json().encode()


def _first(manifest: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(_info("manifest.json"), manifest), (_info("manifest.sha256"), checksum_line(digest_bytes(manifest)))]


FIRST = _first(MANIFEST)
BLOB = f"sha256/{digest_bytes(engine_files()['engine.json'])[7:]}"
HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"hello " * 500,
    "an empty archive": lambda: bytes(10240),
    "a manifest that is not first": lambda: _tar((_info(BLOB), b"x"), *FIRST),
    "a way out": lambda: _tar(*FIRST, (_info("../../etc/passwd"), b"x")),
    "an absolute name": lambda: _tar(*FIRST, (_info("/etc/passwd"), b"x")),
    "a link": lambda: _tar(*FIRST, (_info(BLOB, tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "a hard link": lambda: _tar(*FIRST, (_info(BLOB, tarfile.LNKTYPE, "manifest.json"), b"")),
    "a device": lambda: _tar(*FIRST, (_info(BLOB, tarfile.CHRTYPE), b"")),
    "a folder": lambda: _tar(*FIRST, (_info("sha256", tarfile.DIRTYPE), b"")),
    "a long name": lambda: _tar(*FIRST, (_info("sha256/" + "a" * 500), b"x")),
    "a stranger": lambda: _tar(*FIRST, (_info("sha256/" + "0" * 64), b"x")),
    "other bytes": lambda: _tar(*FIRST, (_info(BLOB), b"x" * len(engine_files()["engine.json"]))),
    "a blob too few": lambda: _tar(*FIRST, (_info(BLOB), engine_files()["engine.json"])),
    "a blob twice": lambda: _tar(*FIRST, *[(_info(BLOB), engine_files()["engine.json"])] * 2),
    "no manifest": lambda: _tar(*_first(b"[]")),
    "a manifest without a checksum": lambda: _tar(FIRST[0], (_info(BLOB), engine_files()["engine.json"])),
    "a manifest of another checksum": lambda: _tar((_info("manifest.json"), MANIFEST + b" "), FIRST[1]),
    "nested deeply": lambda: _tar(*_first(b"[" * 100_000)),
    "a huge manifest": lambda: _tar((_info("manifest.json"), b" " * (MAX_MANIFEST_BYTES + 1))),
    "something behind the end": lambda: _whole() + b"more",
}


def _whole() -> bytes:
    files = engine_files()
    blobs = sorted((digest_bytes(data)[7:], data) for data in files.values())
    return _tar(*FIRST, *((_info(f"sha256/{digits}"), data) for digits, data in blobs))


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "h.engine"
    path.write_bytes(HOSTILE[what]())
    with pytest.raises((InvalidArgumentError, DataLossError), match=r"h\.engine is"):
        read_bundle(path)
    path.write_bytes(_whole())
    assert read_bundle(path).manifest_digest == digest_bytes(MANIFEST), "what another tar writes is taken"


def test_a_declared_size_is_not_believed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("manifest.json")
    info.size = 1 << 60
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    with pytest.raises(DataLossError, match="are left"):
        read_bundle(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "sha256:no"},
        {"max_batch_size": 2**40},
        {"max_batch_size": True},
        {"batched": 1},
        {"calibration_digest": "../x"},
        {"options": ["a"]},
        {"backend": None},
    ],
)
def test_manifests_with_wrong_fields(tmp_path: Path, changes: dict[str, object]) -> None:
    files = engine_files()
    manifest = dataclasses.replace(manifest_of(files), **changes)  # type: ignore[arg-type]
    data = manifest.to_json().encode()
    blobs = sorted((digest_bytes(data)[7:], data) for data in files.values())
    path = tmp_path / "w.engine"
    path.write_bytes(_tar(*_first(data), *((_info(f"sha256/{d}"), b) for d, b in blobs)))
    with pytest.raises(InvalidArgumentError, match=r"w\.engine is no engine bundle"):
        read_bundle(path)


def test_two_files_of_one_digest_and_two_sizes(tmp_path: Path) -> None:
    text = manifest_of({**engine_files(), "twin": engine_files()["sub/model.bin"]}).to_json()
    path = tmp_path / "t.engine"
    path.write_bytes(_tar(*_first(text.replace('"size":2100', '"size":2101', 1).encode())))
    with pytest.raises(InvalidArgumentError, match="two sizes"):
        read_bundle(path)


def test_mutations_are_refused_or_the_same_engine(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, engine = path.read_bytes(), read_bundle(path)
    reasons: dict[str, int] = {}
    for seed in range(MUTATIONS):
        path.write_bytes(data := mutated(good, random.Random(seed)))
        try:
            found = read_bundle(path)
        except EnginehouseError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
            continue
        # A byte that a tar's reader does not look at, or padding behind the end: it is the same engine.
        reasons["the same"] = reasons.get("the same", 0) + 1
        assert found.manifest_digest == engine.manifest_digest, f"seed {seed} passed"
        assert {(part.digest, part.size) for part in found.parts} == {(p.digest, p.size) for p in engine.parts}
        for part in found.parts:
            assert digest_bytes(data[part.offset : part.offset + part.size]) == part.digest, f"seed {seed} passed"
    with capsys.disabled():
        print(f" {MUTATIONS} mutations of bundles: {reasons}", end="")
    assert reasons["DATA_LOSS"] + reasons["INVALID_ARGUMENT"] > MUTATIONS * 0.8


def mutated(data: bytes, source: random.Random) -> bytes:
    """A few bits flipped, bytes replaced, a part cut out, doubled or moved, or the end cut off."""
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 1, 2, 5])):
        at = source.randrange(len(changed))
        length = source.choice([1, 2, 8, 100, 512, 1024])
        kind = source.choice(["flip", "set", "cut", "double", "end", "zero", "digit"])
        if kind == "flip":
            changed[at] ^= 1 << source.randrange(8)
        elif kind == "set":
            changed[at] = source.randrange(256)
        elif kind == "cut":
            del changed[at : at + length]
        elif kind == "double":
            changed[at:at] = changed[at : at + length]
        elif kind == "end":
            del changed[at:]
        elif kind == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        else:
            changed[at : at + 1] = source.choice(b"0123456789").to_bytes(1, "big")
        if not changed:
            break
    return bytes(changed)


def test_a_bundle_that_was_rewritten_whole_is_another(tmp_path: Path) -> None:
    files = engine_files()
    manifest = manifest_of(files)
    path = write_bundle(tmp_path / "o", manifest, {digest_bytes(data): data for data in files.values()})
    assert read_bundle(path).manifest_digest == manifest.digest
