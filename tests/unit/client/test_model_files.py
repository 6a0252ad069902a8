"""What a model's path is taken for, and what goes up of it."""

from __future__ import annotations

import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from client_servers import Servers

from enginehouse import AsyncClient, ImportOptions, Preprocessing, Zoo
from enginehouse.client.model_files import ModelFile, as_one_file, id_from, model_file
from enginehouse.client.onnx_files import external_files
from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.v1 import models_pb2 as pb


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(location: str) -> bytes:
    entries = [
        _field(1, key) + _field(2, value) for key, value in ((b"location", location.encode()), (b"offset", b"0"))
    ]
    # dims, raw data that looks like more messages, and the data's place.
    return (
        b"\x08\x04"
        + _field(8, b"w")
        + _field(9, _field(13, _field(1, b"x")))
        + b"".join(_field(13, e) for e in entries)
    )


def onnx_with(*locations: str, inner: str = "") -> bytes:
    """A model whose initializers lie in files; `inner`: one of a constant in a branch of an If."""
    graph = b"".join(_field(5, _tensor(location)) for location in locations)
    if inner:
        constant = _field(1, _field(5, _field(5, _tensor(inner))))  # graph of a node with an attribute's tensor
        graph += _field(1, _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, constant)))
    return b"\x08\x08" + _field(2, b"a test") + _field(7, graph) + b"\x29" + bytes(8) + b"\x35" + bytes(4)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_with("net.data", "sub/more.bin", "net.data", inner="then.bin"))
    (tmp_path / "sub").mkdir()
    for name in ("net.data", "sub/more.bin", "then.bin", "unrelated"):
        (tmp_path / name).write_bytes(name.encode())
    return path


def test_data_beside_an_onnx_file_goes_with_it(onnx: Path, tmp_path: Path) -> None:
    assert external_files(onnx) == ["net.data", "sub/more.bin", "then.bin"]
    for path in (onnx, onnx.parent):
        found = model_file(path)
        assert found.format == pb.MODEL_FORMAT_ONNX
        archive = as_one_file(found, tmp_path)
        with tarfile.open(archive) as tar:
            assert tar.getnames() == ["net.onnx", "net.data", "sub/more.bin", "then.bin"]
            assert all(member.mtime == 0 and member.uid == 0 and member.isreg() for member in tar)
        archive.unlink()
    assert model_file(onnx).file_name == "net.onnx.tar"
    onnx.write_bytes(onnx_with())
    assert model_file(onnx).packed == () and as_one_file(model_file(onnx), tmp_path) == onnx


@pytest.mark.parametrize("location", ["../net.data", "/etc/passwd", "sub/../../x", ""])
def test_data_outside_the_folder_is_refused(onnx: Path, location: str) -> None:
    onnx.write_bytes(onnx_with(location))
    with pytest.raises(InvalidArgumentError, match="outside its folder"):
        model_file(onnx)


def test_data_that_is_missing_is_named(onnx: Path) -> None:
    onnx.write_bytes(onnx_with("lost.bin"))
    with pytest.raises(InvalidArgumentError, match=r"lost\.bin"):
        model_file(onnx)


def test_onnx_files_that_cannot_be_read_have_no_data(onnx: Path) -> None:
    good = onnx.read_bytes()
    for seed in range(300):
        source, data = random.Random(seed), bytearray(good)
        for _ in range(source.choice([1, 1, 3])):
            data[source.randrange(len(data))] = source.randrange(256)
        onnx.write_bytes(data[: source.choice([len(data), source.randrange(len(data) + 1)])])
        try:
            external_files(onnx)
        except InvalidArgumentError as error:
            assert "keeps tensors" in error.message
    deep = b""
    for _ in range(2000):
        deep = _field(7, _field(1, _field(5, _field(6, deep)))) if not deep else _field(1, _field(5, _field(6, deep)))
    onnx.write_bytes(_field(7, deep))
    assert external_files(onnx) == []


def test_formats_are_found_out(tmp_path: Path) -> None:
    def file(name: str, data: bytes = b"x") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert model_file(file("a.keras")).format == pb.MODEL_FORMAT_KERAS
    assert model_file(file("a.H5")).format == pb.MODEL_FORMAT_KERAS_HDF5
    assert model_file(file("a.pb")).format == pb.MODEL_FORMAT_FROZEN_GRAPH
    assert model_file(file("model", b"\x89HDF\r\n\x1a\n...")).format == pb.MODEL_FORMAT_KERAS_HDF5
    assert model_file(file("graph.bin"), "frozen_graph").format == pb.MODEL_FORMAT_FROZEN_GRAPH
    with zipfile.ZipFile(tmp_path / "unnamed", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "")
    assert model_file(tmp_path / "unnamed").format == pb.MODEL_FORMAT_KERAS
    for name, member, wanted in (
        ("s.zip", "net/saved_model.pb", pb.MODEL_FORMAT_SAVED_MODEL),
        ("o.zip", "net.onnx", pb.MODEL_FORMAT_ONNX),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "x")
        found = model_file(tmp_path / name)
        assert (found.format, found.packed, found.file_name) == (wanted, (), name)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.pb", "saved_model.pb")
    assert model_file(tmp_path / "s.tar.gz").format == pb.MODEL_FORMAT_SAVED_MODEL


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    for name in ("text.txt", "broken.zip", "saved_model.pb", "a.pb"):
        (tmp_path / name).write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    cases = [
        ("none.onnx", None, "there is no"),
        ("text.txt", None, "unknown model format"),
        ("broken.zip", None, "cannot be read"),
        ("other.zip", None, "neither"),
        ("saved_model.pb", None, "upload its folder"),
        ("a.pb", "saved_model", "is one file"),
        ("a.pb", "caffe", "unknown model format 'caffe'"),
        ("a.pb", "zoo", "has no file"),
        ("variables", None, r"no saved_model\.pb"),
    ]
    for name, stated, words in cases:
        with pytest.raises(InvalidArgumentError, match=words):
            model_file(tmp_path / name, stated)


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "stored").write_bytes(b"graph")
    (folder / "saved_model.pb").symlink_to(tmp_path / "stored")
    with tarfile.open(as_one_file(model_file(folder), tmp_path)) as tar:
        (member,) = tar.getmembers()
        assert member.isreg() and member.size == 5


def test_ids_of_archives() -> None:
    assert id_from(Path("My Net.tar.gz")) == "my-net" and id_from(Path("net.v2.keras")) == "net.v2"


async def test_what_a_file_does_not_say_goes_with_it(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    path.write_bytes(b"graph")
    options = ImportOptions(("x:0",), ("y:0",), "")
    prepared = Preprocessing((123.7, 116.8, 103.9), (1.0,), True, 0.9, "bicubic")
    model = await client.models.upload(path, format="frozen_graph", import_options=options, preprocessing=prepared)
    assert (model.format, model.import_options, model.preprocessing) == ("frozen_graph", options, prepared)
    plain = await client.models.upload(path, "plain", format="frozen_graph")
    assert plain.import_options is None and plain.preprocessing is None


async def test_zoo_models_take_weights_of_a_file(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    path.write_bytes(b"weights")
    model = await client.models.create_zoo("flowers", "vgg16", weights=path, classes=5)
    assert model.zoo is not None and model.zoo.weights in servers.blobs.whole
    again = await client.models.create_zoo("again", "vgg16", weights=model.zoo.weights, classes=5)
    assert again.zoo == model.zoo == Zoo("vgg16", 0, model.zoo.weights, 5)
    with pytest.raises((InvalidArgumentError, NotFoundError)):
        await client.models.create_zoo("none", "vgg16", weights=tmp_path / "none.h5")


def test_a_model_file_is_a_value(tmp_path: Path) -> None:
    assert ModelFile(tmp_path, pb.MODEL_FORMAT_ONNX).file_name == tmp_path.name
