"""Uploads and downloads: chunks, checks, and going on where a connection broke."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from client_servers import PROJECT, Servers

from enginehouse import AsyncClient, BatchProfile, Engine
from enginehouse.client import blobs
from enginehouse.client.connection import Endpoint
from enginehouse.client.model_files import id_from, model_file
from enginehouse.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from enginehouse.v1 import engines_pb2


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(attempt: int) -> None:
        return None

    monkeypatch.setattr(blobs, "backoff", at_once)


def _model_file(tmp_path: Path, size: int = (3 << 20) + 5) -> Path:
    path = tmp_path / "My Net.onnx"
    path.write_bytes(os.urandom(size))
    return path


async def test_upload_sends_chunks_and_registers_the_model(
    client: AsyncClient, servers: Servers, tmp_path: Path
) -> None:
    path = _model_file(tmp_path)
    seen: list[tuple[int, int]] = []
    model = await client.models.upload(path, labels={"a": "b"}, progress=lambda done, size: seen.append((done, size)))
    assert model.name == f"{PROJECT}/models/my-net"
    assert (model.id, model.format, model.file_name, model.labels) == ("my-net", "onnx", "My Net.onnx", {"a": "b"})
    assert servers.blobs.whole[model.blob] == path.read_bytes()
    assert seen[-1] == (path.stat().st_size,) * 2 and len(seen) == 4


async def test_a_broken_upload_goes_on_where_it_stopped(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    servers.blobs.break_after = [1, 2]
    model = await client.models.upload(_model_file(tmp_path))
    assert servers.blobs.offsets == [0, 1 << 20, 3 << 20]
    assert model.digest in servers.blobs.whole


async def test_an_upload_goes_on_after_a_write_that_failed_without_a_status(
    client: AsyncClient, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a stream ends in the middle of a write, gRPC now and then says this and not the server's own status."""
    servers.blobs.break_after = [1]
    failures, sends = [], Endpoint.send

    async def send(self: Endpoint, method: Any, messages: Any) -> Any:
        async def fails(outgoing: Any) -> Any:
            try:
                return await method(outgoing)
            except grpc.aio.AioRpcError as error:
                failures.append(error.code())
                none = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, "Internal error from Core") from None

        return await sends(self, fails, messages)

    monkeypatch.setattr(Endpoint, "send", send)
    model = await client.models.upload(_model_file(tmp_path))
    assert len(failures) == 1 and servers.blobs.offsets == [0, 1 << 20]
    assert model.digest in servers.blobs.whole


async def test_a_complete_blob_is_not_sent_again(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    path = _model_file(tmp_path, 100)
    await client.models.upload(path, "a")
    await client.models.upload(path, "b")
    assert servers.blobs.offsets == [0]


async def test_an_upload_that_never_gets_further_gives_up(
    client: AsyncClient, servers: Servers, tmp_path: Path
) -> None:
    async def refuse(request: object, context: object) -> None:
        raise OSError

    servers.blobs.break_after = [0] * 100
    path = _model_file(tmp_path, 100)
    servers.blobs.partial[blobs.digest_of(path)] = bytearray(b"wrong length" * 100)
    with pytest.raises(Exception, match=r"broke|offset|Unexpected"):
        await client.models.upload(path)
    assert len(servers.blobs.offsets) <= blobs.MAX_TRIES


async def test_a_file_that_changes_meanwhile_is_named(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    path = _model_file(tmp_path, 100)

    async def grow(self: object, path: Path, *_: object) -> None:
        path.write_bytes(b"more" * 100)
        raise DataLossError("other bytes")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InvalidArgumentError, match="changed while"):
        patch.setattr(blobs.AsyncBlobs, "_write", grow)
        await client.models.upload(path)


async def test_a_download_leaves_alone_what_is_there(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError):
        await blobs.AsyncBlobs(client._optimizer, PROJECT).download(servers.blobs.add(b"x"), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


async def test_an_empty_folder_can_be_downloaded_into_and_two_may_race(
    client: AsyncClient, servers: Servers, tmp_path: Path
) -> None:
    name = _engine(servers, b"x" * 3000)
    target = tmp_path / "engine"
    target.mkdir()
    assert await asyncio.gather(*(client.engines.download(name, target) for _ in range(3))) == [target] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["engine"] and (target / "model" / "engine.onnx").is_file()


async def test_other_bytes_under_a_taken_name_are_refused(client: AsyncClient, tmp_path: Path) -> None:
    await client.models.upload(_model_file(tmp_path, 10), "m")
    with pytest.raises(AlreadyExistsError) as caught:
        await client.models.upload(_model_file(tmp_path, 10), "m")
    assert caught.value.details["digest"].startswith("sha256:")
    await client.models.upload(_model_file(tmp_path, 10), "m", replace=True)


async def test_a_saved_model_folder_is_packed_the_same_every_time(
    client: AsyncClient, servers: Servers, tmp_path: Path
) -> None:
    digests = []
    for place in ("one", "two"):
        folder = tmp_path / place / "net"
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"graph")
        (folder / "variables" / "data").write_bytes(b"weights")
        os.utime(folder / "saved_model.pb", (len(digests), 5))
        digests.append((await client.models.upload(folder)).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["model.txt", "missing.onnx"])
async def test_what_is_no_model_is_refused_before_any_call(client: AsyncClient, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.txt").write_text("hello")
    with pytest.raises(InvalidArgumentError):
        await client.models.upload(tmp_path / name)


def test_ids_come_from_file_names() -> None:
    assert id_from(Path("ResNet 50 (v1).onnx")) == "resnet-50-v1"
    with pytest.raises(InvalidArgumentError, match="give one"):
        id_from(Path("___.onnx"))


def test_a_folder_without_a_saved_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"saved_model\.pb"):
        model_file(tmp_path)


async def test_zoo_models_are_made_once(client: AsyncClient, servers: Servers) -> None:
    model = await client.models.ensure_zoo("resnet_v1_50", seed=3)
    assert model.zoo is not None and (model.zoo.architecture, model.zoo.seed) == ("resnet_v1_50", 3)
    assert model.format == "zoo"
    assert await client.models.ensure_zoo("resnet_v1_50", seed=3) == model


async def test_lists_take_every_page(client: AsyncClient) -> None:
    for place in range(5):
        await client.models.create_zoo(f"m{place}", "vgg16", place)
    assert [m.id for m in await client.models.list()] == ["m0", "m1", "m2", "m3", "m4"]
    await client.models.delete("m0")
    assert len(await client.models.list()) == 4


async def test_errors_come_back_as_their_class_with_their_message(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="there is no projects/default/models/none"):
        await client.models.get("none")


async def test_arrays_become_a_dataset_of_the_same_digest(client: AsyncClient, servers: Servers) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": np.array([0, 1])}
    first = await client.datasets.upload(arrays, "d")
    second = await client.datasets.upload(arrays, "e")
    assert first.blob == second.blob and first.file_name == "d.npz"


async def test_datasets_of_unequal_lengths_are_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError, match="same number of samples"):
        await client.datasets.upload({"x": np.zeros((2, 3)), "labels": np.zeros(3)}, "d")
    with pytest.raises(InvalidArgumentError, match="dataset_id"):
        await client.datasets.upload({"x": np.zeros((2, 3))})


def _engine(servers: Servers, payload: bytes, path: str = "model/engine.onnx") -> str:
    name = f"{PROJECT}/engines/m-onnxruntime-fp32-0123456789ab"
    engine = engines_pb2.Engine(
        name=name, model="projects/default/models/m", backend="onnxruntime", precision=engines_pb2.PRECISION_FP32
    )
    engine.files.add(path=path, digest=servers.blobs.add(payload), size_bytes=len(payload))
    engine.manifest_digest = servers.blobs.add(b'{"backend": "onnxruntime"}')
    engine.profile.min, engine.profile.opt, engine.profile.max = 1, 4, 16
    servers.engines.engines[name] = engine
    return name


async def test_engines_download_whole_and_resume(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    payload = os.urandom(5500)
    name = _engine(servers, payload)
    servers.blobs.break_after = [2, 1]
    target = tmp_path / "engine"
    seen: list[tuple[int, int]] = []
    assert await client.engines.download(name, target, progress=lambda a, b: seen.append((a, b))) == target
    assert (target / "model" / "engine.onnx").read_bytes() == payload
    assert servers.blobs.offsets[:3] == [0, 2000, 3000]
    assert seen[-1] == (5500, 5500)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine"]
    assert await client.engines.manifest(name) == {"backend": "onnxruntime"}
    # Again: it is there already. Something else: refused.
    assert await client.engines.download(name, target) == target
    (target / "model" / "engine.onnx").write_bytes(b"changed")
    with pytest.raises(AlreadyExistsError):
        await client.engines.download(name, target)


async def test_damaged_bytes_leave_nothing_behind(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    name = _engine(servers, b"right")
    for key, value in servers.blobs.whole.items():
        if value == b"right":
            servers.blobs.whole[key] = b"wrong"
    with pytest.raises(DataLossError, match="another digest"):
        await client.engines.download(name, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_outside_the_directory_is_refused(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    name = _engine(servers, b"x", path="../evil")
    with pytest.raises(DataLossError, match="outside"):
        await client.engines.download(name, tmp_path / "engine")


async def test_engines_are_values(client: AsyncClient, servers: Servers) -> None:
    name = _engine(servers, b"x")
    engine = await client.engines.get(name.rsplit("/", 1)[-1])
    assert isinstance(engine, Engine) and engine.precision == "fp32" and engine.profile == BatchProfile(1, 4, 16)
    assert engine.verification is None
    assert await client.engines.list(backend="tensorrt") == []
    assert await client.engines.list(backend="onnxruntime", precision="fp32", model="m") == [engine]
    with pytest.raises(InvalidArgumentError, match="fp32, tf32, fp16, bf16, int8, fp8"):
        await client.engines.list(precision="int4")
