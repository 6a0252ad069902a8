"""What ImportEngine takes and refuses, and that nothing half-checked is ever published."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.api.engines import EnginesService
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.pipeline.publish import engine_message
from enginehouse_optimizer.storage.aliases import AliasStore
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.serving import ServingStore

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine_bundles import engine_files, manifest_of

from enginehouse.artifacts import BlobStore, EngineManifest, digest_bytes
from enginehouse.artifacts.manifest import engine_key
from enginehouse.errors import (
    AlreadyExistsError,
    DataLossError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
)
from enginehouse.v1 import engines_pb2 as pb

MUTATIONS = int(os.environ.get("ENGINEHOUSE_MUTATIONS", "400"))
PARENT = "projects/p"


class World:
    """The service on a folder, and what an importer uploads to it."""

    def __init__(self, root: Path) -> None:
        blobs = ProjectBlobs(root)
        database = Database(":memory:")
        self.store: BlobStore = blobs.of("p")
        self.index = EngineIndex(database)
        aliases = AliasStore(database, ServingStore(database))
        self.service = EnginesService(self.index, aliases, blobs, Notifier())

    def upload(self, manifest: EngineManifest | bytes, *blobs: bytes) -> str:
        for data in blobs:
            self.store.put_bytes(data)
        return self.store.put_bytes(manifest if isinstance(manifest, bytes) else manifest.to_json().encode())

    async def take(self, digest: str, model_id: str = "") -> pb.Engine:
        request = pb.ImportEngineRequest(parent=PARENT, manifest_digest=digest, model_id=model_id)
        return await self.service.ImportEngine(request, None)

    async def names(self) -> list[str]:
        answer = await self.service.ListEngines(pb.ListEnginesRequest(parent=PARENT), None)
        return [engine.name for engine in answer.engines]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


FILES = engine_files()


async def test_an_engine_is_published_as_it_was(world: World) -> None:
    manifest = manifest_of(FILES, extra={"calibration_digest": b"{}"})
    digest = world.upload(manifest, b"{}", *FILES.values())
    engine = await world.take(digest)
    assert engine.name == f"{PARENT}/engines/m-onnxruntime-fp32-{manifest.key[7:19]}"
    assert (engine.model, engine.key, engine.manifest_digest) == (f"{PARENT}/models/m", manifest.key, digest)
    assert {f.path: f.digest for f in engine.files} == {path: digest_bytes(data) for path, data in FILES.items()}
    assert await world.take(digest) == engine and await world.names() == [engine.name], "again changes nothing"
    other = await world.take(digest, "other")
    assert other.model == f"{PARENT}/models/other" and len(await world.names()) == 2
    assert engine_message(other.name, manifest, digest) == other, "what a check or a recovery makes of the manifest"
    again = dataclasses.replace(manifest, create_time="2027-01-01T00:00:00Z")
    assert (await world.take(world.upload(again))).manifest_digest == digest, "the first one stays"


async def test_other_files_under_its_name_are_refused(world: World) -> None:
    manifest = manifest_of(FILES)
    first = await world.take(world.upload(manifest, *FILES.values()))
    rebuilt = {**FILES, "sub/model.bin": b"another build of it"}
    forged = dataclasses.replace(manifest_of(rebuilt), key=manifest.key, stages=manifest.stages)
    digest = world.upload(forged, *rebuilt.values())
    with pytest.raises(AlreadyExistsError, match="other files"):
        await world.take(digest)
    assert (await world.service.GetEngine(pb.GetEngineRequest(name=first.name), None)) == first
    assert (await world.take(digest, "other")).files != first.files


Change = Callable[[EngineManifest], EngineManifest]
REFUSED: dict[str, tuple[Change, type[EnginehouseError], str]] = {
    "a key of its own": (lambda m: dataclasses.replace(m, key=digest_bytes(b"k")), DataLossError, "build stage"),
    "no stages": (lambda m: dataclasses.replace(m, stages=()), DataLossError, "build stage"),
    "another backend": (lambda m: dataclasses.replace(m, backend="tensorrt"), DataLossError, "backend"),
    "a backend that is a path": (lambda m: dataclasses.replace(m, backend="../../x"), InvalidArgumentError, "valid"),
    "another signature": (lambda m: dataclasses.replace(m, inputs=()), DataLossError, "inputs"),
    "another batch size": (lambda m: dataclasses.replace(m, max_batch_size=64), DataLossError, "max_batch_size"),
    "a precision that is none": (lambda m: dataclasses.replace(m, precision="INT3"), DataLossError, "precision"),
    "a model that is no name": (lambda m: dataclasses.replace(m, model="m"), InvalidArgumentError, "models"),
    "no description": (
        lambda m: dataclasses.replace(m, files=m.files.without("engine.json")),
        InvalidArgumentError,
        "engine.json",
    ),
    "a time that is none": (lambda m: dataclasses.replace(m, create_time="today"), InvalidArgumentError, "manifest"),
    "a table that is not here": (
        lambda m: dataclasses.replace(m, calibration_digest=digest_bytes(b"away")),
        FailedPreconditionError,
        "upload it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_manifests_that_do_not_fit(world: World, what: str) -> None:
    change, kind, words = REFUSED[what]
    with pytest.raises(kind, match=words):
        await world.take(world.upload(change(manifest_of(FILES)), *FILES.values()))
    assert await world.names() == []


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../b", "a//b", "", "a\\b", "engine.json/x"])
async def test_paths_that_leave_the_engine(world: World, path: str) -> None:
    value = json.loads(manifest_of(FILES).to_json())
    value["files"][1]["path"] = path
    with pytest.raises(InvalidArgumentError):
        await world.take(world.upload(json.dumps(value).encode(), *FILES.values()))
    assert await world.names() == []


async def test_sizes_and_bytes_are_checked(world: World) -> None:
    value = json.loads(manifest_of(FILES).to_json())
    value["files"][1]["size"] = 10**15
    with pytest.raises(DataLossError, match="the manifest says 1000000000000000"):
        await world.take(world.upload(json.dumps(value).encode(), *FILES.values()))
    with pytest.raises(FailedPreconditionError, match="not complete"):
        await world.take(digest_bytes(b"no manifest"))
    await world.take(world.upload(manifest_of(FILES)))
    fresh = EngineManifest.from_json(manifest_of(engine_files(b"never uploaded")).to_json())
    with pytest.raises(FailedPreconditionError, match="upload it"):
        await world.take(world.upload(fresh))
    with pytest.raises(InvalidArgumentError, match="at most"):
        await world.take(world.upload(b" " * (16 << 20) + b"{}"))
    assert len(await world.names()) == 1


async def test_a_payload_that_is_no_engine(world: World) -> None:
    files = {**FILES, "engine.json": b"[" * 5000}
    manifest = dataclasses.replace(manifest_of(FILES), files=manifest_of({**FILES}).files)
    value = json.loads(manifest.to_json())
    for entry in value["files"]:
        if entry["path"] == "engine.json":
            entry.update(digest=digest_bytes(files["engine.json"]), size=len(files["engine.json"]))
    with pytest.raises(DataLossError, match=r"engine\.json"):
        await world.take(world.upload(json.dumps(value).encode(), *files.values()))


def _mutated(value: Any, source: random.Random) -> bytes:
    """A manifest with fields of other kinds, or with other bytes."""
    if source.random() < 0.5:
        value = json.loads(json.dumps(value))
        node: Any = value
        for _ in range(source.randrange(5)):
            keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
            if not keys:
                break
            key = source.choice(keys)
            if source.random() < 0.5 or not isinstance(node[key], dict | list):
                strange = [
                    None,
                    True,
                    -1,
                    2**70,
                    1.5,
                    "",
                    "x",
                    "\ud800",
                    "../x",
                    [],
                    {},
                    [[]],
                    {"a": 1},
                    "sha256:" + "0" * 64,
                ]
                node[key] = source.choice(strange)
                break
            node = node[key]
        return json.dumps(value).encode()
    data = bytearray(json.dumps(value).encode())
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(data))
        data[at : at + source.choice([0, 1, 1, 20])] = source.choice(
            [b"", b"9", b"\xff", b"NaN", b"1e999", b'"', b"[", b"}", bytes([source.randrange(256)])]
        )
    return bytes(data)


async def test_mutations_are_refused_or_harmless(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"calibration_digest": b"{}", "build_log_digest": b"log"}
    value = json.loads(manifest_of(FILES, extra=extra).to_json())
    world.upload(b"", b"{}", b"log", *FILES.values())
    reasons: dict[str, int] = {}
    for seed in range(MUTATIONS):
        digest = world.upload(_mutated(value, random.Random(seed)))
        try:
            engine = await world.take(digest)
        except EnginehouseError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
        else:
            reasons["published"] = reasons.get("published", 0) + 1
            assert engine.key == value["key"] == engine_key({"build": value["stages"][0]["key"]})
            assert {file.digest for file in engine.files} <= {digest_bytes(data) for data in FILES.values()}
            assert all(".." not in file.path for file in engine.files)
    for name in await world.names():
        engine = await world.service.GetEngine(pb.GetEngineRequest(name=name), None)
        assert all(world.store.path(file.digest) for file in engine.files)
    with capsys.disabled():
        print(f" {MUTATIONS} mutations of manifests: {reasons}", end="")
    assert set(reasons) <= {"INVALID_ARGUMENT", "DATA_LOSS", "FAILED_PRECONDITION", "ALREADY_EXISTS", "published"}


async def test_what_lists_could_not_hold_is_refused(world: World) -> None:
    files = {**FILES, **{f"assets/{number}": b"x" for number in range(10_001)}}
    with pytest.raises(InvalidArgumentError, match="files: expected at most"):
        await world.take(world.upload(manifest_of(files), *FILES.values(), b"x"))
    assert await world.names() == []


def test_a_manifest_with_words_of_a_later_version_is_no_surprise() -> None:
    later = dataclasses.replace(manifest_of(FILES), precision="INT2")
    with pytest.raises(InvalidArgumentError, match="INT2"):
        engine_message(f"{PARENT}/engines/e", later, digest_bytes(b""))
