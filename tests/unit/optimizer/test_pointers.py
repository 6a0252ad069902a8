"""Engines that an object store names follow the database, whenever the service is killed."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from enginehouse_optimizer.pipeline.publish import engine_message
from enginehouse_optimizer.storage import objects as objects_module
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.objects import ObjectStore
from enginehouse_optimizer.storage.pointers import EnginePointers, ToldEngineIndex

from enginehouse.artifacts import Tree, TreeEntry, digest_bytes
from enginehouse.artifacts.manifest import DeviceSpec, EngineManifest, ProfileSpec
from enginehouse.names import parse
from enginehouse.v1 import engines_pb2


class Service:
    """What a service has of its engines, from its start to its death."""

    def __init__(self, folder: Path, url: str) -> None:
        self.blobs = ProjectBlobs(folder, ObjectStore(url, retry_seconds=0))
        self.database = Database(folder / "optimizer.sqlite")
        self.pointers = EnginePointers(self.database, self.blobs)
        self.index = ToldEngineIndex(self.database, self.pointers.changed, pointed_at=True)

    def publish(self, number: int = 1, precision: str = "FP32") -> engines_pb2.Engine:
        store, key = self.blobs.of("p"), digest_bytes(bytes([number]))
        files = Tree((TreeEntry("model.onnx", store.put_bytes(b"x"), 1),))
        manifest = EngineManifest(
            key, "projects/p/models/m", key, precision, "onnxruntime", "1", DeviceSpec("cpu"), ProfileSpec(1, 1, 1),
            (), (), True, 1, files, create_time="2026-01-01T00:00:00Z",
        )  # fmt: skip
        name = f"projects/p/engines/m-onnxruntime-{precision.lower()}-{key[7:19]}"
        digest = store.put_bytes(manifest.to_json().encode())
        if precision == "FP32":
            return self.index.publish([engine_message(name, manifest, digest)])[0]
        assert self.blobs.objects is not None
        self.blobs.objects.put_json(f"projects/p/engines/{name.rsplit('/', 1)[-1]}.json", {"manifest": digest})
        return engines_pb2.Engine(name=name)

    def names(self) -> list[str]:
        return [str(row["id"]) for row in self.database.rows("SELECT id FROM engines ORDER BY id")]

    def die(self) -> None:
        self.database.close()


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


async def test_a_deleted_engine_stays_deleted_when_its_pointer_outlives_the_service(tmp_path: Path, url: str) -> None:
    (tmp_path / "a").mkdir()
    service = Service(tmp_path / "a", url)
    await service.pointers.recover(service.index)
    engine, kept = service.publish(1), service.publish(2)
    assert await service.pointers.flush()
    service.index.delete(parse(engine.name, "engines"))
    service.die()  # before the pointer was removed
    service = Service(tmp_path / "a", url)
    assert await service.pointers.recover(service.index) == 0
    assert service.names() == [kept.name.rsplit("/", 1)[-1]]
    assert await service.pointers.flush(), "the pointer goes, and with it the memory of the deletion"
    assert service.database.rows("SELECT * FROM deleted_engines") == []
    service.die()
    (tmp_path / "b").mkdir()
    other = Service(tmp_path / "b", url)
    assert await other.pointers.recover(other.index) == 1 and len(other.names()) == 1
    other.die()


async def test_an_engine_that_is_built_again_is_no_longer_deleted(tmp_path: Path, url: str) -> None:
    service = Service(tmp_path, url)
    engine = service.publish()
    assert await service.pointers.flush()
    service.index.delete(parse(engine.name, "engines"))
    service.publish()
    assert await service.pointers.flush()
    assert service.database.rows("SELECT * FROM deleted_engines") == []
    service.die()


async def test_an_engine_of_a_later_version_does_not_keep_the_service_from_starting(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "_WAIT_SECONDS", (0.0, 0.0))
    service = Service(tmp_path, url)
    service.publish(3, precision="INT2")
    assert await service.pointers.recover(service.index) == 0 and service.names() == []
    service.die()
