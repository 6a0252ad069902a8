"""Aliases, pins and what follows them, in the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.api.engines import EnginesService
from enginehouse_optimizer.api.serving import ServingConfigsService
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.storage import database as database_module
from enginehouse_optimizer.storage.aliases import AliasStore
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import MIGRATIONS, Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.storage.serving import ServingStore

from enginehouse.errors import (
    AbortedError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from enginehouse.names import parse_nested
from enginehouse.v1 import engines_pb2 as pb
from enginehouse.v1 import serving_pb2

P = "projects/p"
PROD = f"{P}/models/m/aliases/prod"


class World:
    def __init__(self, root: Path) -> None:
        self.database = Database(":memory:")
        self.index = EngineIndex(self.database)
        self.serving = ServingStore(self.database)
        aliases, self.notifier = AliasStore(self.database, self.serving), Notifier()
        self.engines = EnginesService(self.index, aliases, ProjectBlobs(root), self.notifier)
        self.configs = ServingConfigsService(self.serving, self.index, aliases, self.notifier)
        for number, model in ((1, "m"), (2, "m"), (3, "other")):
            self.add(number, model)

    def add(self, number: int, model: str = "m", **fields: Any) -> str:
        name = f"{P}/engines/e{number}"
        fields = {"max_batch_size": 8, "backend": "onnxruntime", **fields}
        self.index.publish([pb.Engine(name=name, key=f"k{number}", model=f"{P}/models/{model}", **fields)])
        return name

    async def alias(self, engine: str, name: str = PROD, etag: str = "") -> pb.Alias:
        alias = pb.Alias(name=name, engine=f"{P}/engines/{engine}", etag=etag)
        return await self.engines.SetAlias(pb.SetAliasRequest(alias=alias), None)

    async def serve(self, *versions: serving_pb2.ServedVersion, **fields: Any) -> serving_pb2.ServingConfig:
        config = serving_pb2.ServingConfig(name=f"{P}/servingConfigs/c", versions=versions, **fields)
        request = serving_pb2.UpdateServingConfigRequest(serving_config=config, allow_missing=True)
        return await self.configs.UpdateServingConfig(request, None)

    def served(self) -> list[tuple[int, str, str]]:
        (config,) = self.serving.state("p").configs
        return [(v.version, v.engine.rsplit("/", 1)[-1], v.alias.rsplit("/", 1)[-1]) for v in config.versions]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def follow(version: int, name: str = PROD) -> serving_pb2.ServedVersion:
    return serving_pb2.ServedVersion(version=version, alias=name)


def fixed(version: int, engine: str) -> serving_pb2.ServedVersion:
    return serving_pb2.ServedVersion(version=version, engine=f"{P}/engines/{engine}")


async def test_an_alias_moves_and_has_etags(world: World) -> None:
    first = await world.alias("e1")
    assert first.engine == f"{P}/engines/e1" and first.update_time.seconds
    assert await world.alias("e1") == first, "setting what it is changes nothing"
    second = await world.alias("e2", etag=first.etag)
    assert second.etag != first.etag
    with pytest.raises(AbortedError, match="changed"):
        await world.alias("e1", etag=first.etag)
    with pytest.raises(AbortedError):
        await world.alias("e1", f"{P}/models/m/aliases/new", etag="x")
    assert await world.engines.GetAlias(pb.GetAliasRequest(name=PROD), None) == second
    assert world.index.get(parse_engine("e2")).aliases == ["prod"] and not world.index.get(parse_engine("e1")).aliases
    await world.engines.DeleteAlias(pb.DeleteAliasRequest(name=PROD), None)
    for call in (world.engines.GetAlias(pb.GetAliasRequest(name=PROD), None),
                 world.engines.DeleteAlias(pb.DeleteAliasRequest(name=PROD), None)):  # fmt: skip
        with pytest.raises(NotFoundError):
            await call


def parse_engine(engine: str) -> Any:
    from enginehouse.names import parse

    return parse(f"{P}/engines/{engine}", "engines")


@pytest.mark.parametrize(
    ("name", "engine", "kind", "words"),
    [
        (PROD, "e3", InvalidArgumentError, "of that model only"),
        (PROD, "e9", NotFoundError, "e9"),
        (f"{P}/models/m/aliases/UP", "e1", InvalidArgumentError, "UP"),
        (f"{P}/models/m", "e1", InvalidArgumentError, "aliases"),
        (f"{P}/engines/m/aliases/prod", "e1", InvalidArgumentError, "models"),
        ("projects/q/models/m/aliases/prod", "e1", InvalidArgumentError, "another project"),
    ],
)
async def test_aliases_that_are_refused(
    world: World, name: str, engine: str, kind: type[EnginehouseError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await world.alias(engine, name)


async def test_aliases_are_listed_in_pages(world: World) -> None:
    for model, alias, engine in (("m", "b", "e1"), ("m", "a", "e2"), ("other", "a", "e3"), ("m", "c", "e1")):
        await world.alias(engine, f"{P}/models/{model}/aliases/{alias}")

    async def listed(parent: str, size: int) -> list[str]:
        names, token = [], ""
        while True:
            request = pb.ListAliasesRequest(parent=parent, page_size=size, page_token=token)
            answer = await world.engines.ListAliases(request, None)
            names += [alias.name.removeprefix(f"{P}/models/") for alias in answer.aliases]
            if not (token := answer.next_page_token):
                return names

    for size in (1, 2, 3, 100):
        assert await listed(f"{P}/models/-", size) == ["m/aliases/a", "m/aliases/b", "m/aliases/c", "other/aliases/a"]
        assert await listed(f"{P}/models/m", size) == ["m/aliases/a", "m/aliases/b", "m/aliases/c"]
    assert await listed("projects/q/models/-", 2) == []
    for parent in ("projects/p", "projects/P/models/-", "projects/p/engines/-"):
        with pytest.raises(InvalidArgumentError):
            await listed(parent, 1)
    assert list(world.index.get(parse_engine("e1")).aliases) == ["b", "c"]


async def test_what_is_served_follows_its_alias(world: World) -> None:
    await world.alias("e1")
    stored = await world.serve(fixed(1, "e3"), follow(2))
    assert stored.versions[1].engine == f"{P}/engines/e1", "the server fills the engine in"
    revision = world.serving.revision("p")
    with world.notifier.watch(("serving", "p")) as watch:
        await world.alias("e2")
        assert await watch.wait(1), "watchers are told"
    assert world.served() == [(1, "e3", ""), (3, "e2", "prod")]
    state = world.serving.state("p")
    assert state.revision == revision + 1 and state.configs[0].generation == stored.generation + 1
    assert state.configs[0].etag != stored.etag
    await world.alias("e2")
    assert world.serving.revision("p") == revision + 1, "nothing moved"
    await world.alias("e1")
    assert world.served() == [(1, "e3", ""), (4, "e1", "prod")], "and back, as a new version"
    # A writer who read before the move is told.
    stored.instances = 3
    with pytest.raises(AbortedError):
        await world.configs.UpdateServingConfig(serving_pb2.UpdateServingConfigRequest(serving_config=stored), None)


async def test_one_that_cannot_follow_stops_the_alias(world: World) -> None:
    world.add(4, max_batch_size=2)
    await world.alias("e1")
    await world.serve(follow(1), batching={"max_batch_size": 8})
    before = world.serving.state("p")
    with pytest.raises(FailedPreconditionError, match=r"servingConfigs/c.*max_batch_size"):
        await world.alias("e4")
    assert world.serving.state("p") == before
    assert (await world.engines.GetAlias(pb.GetAliasRequest(name=PROD), None)).engine.endswith("e1")


async def test_wrong_configurations_with_aliases(world: World) -> None:
    with pytest.raises(FailedPreconditionError, match="does not exist"):
        await world.serve(follow(1))
    await world.alias("e1")
    with pytest.raises(InvalidArgumentError, match="versions 1 and 2"):
        await world.serve(follow(1), follow(2))
    with pytest.raises(InvalidArgumentError, match="another project"):
        await world.serve(follow(1, "projects/q/models/m/aliases/prod"))


async def test_what_is_named_or_pinned_stays(world: World) -> None:
    await world.alias("e1")
    await world.serve(follow(1))
    delete = pb.DeleteEngineRequest(name=f"{P}/engines/e1")
    pinned = await world.engines.PinEngine(pb.PinEngineRequest(name=delete.name, pinned=True), None)
    assert pinned.pinned and world.index.get(parse_engine("e1")).pinned
    with pytest.raises(FailedPreconditionError, match=r"served by c.*alias prod.*pinned: .*unpin it first") as caught:
        await world.engines.DeleteEngine(delete, None)
    assert caught.value.details == {"serving_configs": "c", "aliases": "prod", "pinned": "true"}
    forget = pb.DeleteAliasRequest(name=PROD)
    with pytest.raises(FailedPreconditionError, match="served by c"):
        await world.engines.DeleteAlias(forget, None)
    await world.serve(fixed(2, "e2"))
    await world.engines.DeleteAlias(forget, None)
    with pytest.raises(FailedPreconditionError, match="pinned"):
        await world.engines.DeleteEngine(delete, None)
    assert not (await world.engines.PinEngine(pb.PinEngineRequest(name=delete.name), None)).pinned
    await world.engines.DeleteEngine(delete, None)
    with pytest.raises(NotFoundError):
        await world.engines.PinEngine(pb.PinEngineRequest(name=delete.name, pinned=True), None)


async def test_a_verification_again_keeps_the_pin(world: World) -> None:
    name = f"{P}/engines/e1"
    await world.engines.PinEngine(pb.PinEngineRequest(name=name, pinned=True), None)
    measured = pb.Engine(name=name, key="k1", model=f"{P}/models/m", verification={"samples": 5})
    world.index.publish([measured])
    found = world.index.get(parse_engine("e1"))
    assert found.pinned and found.verification.samples == 5


async def test_engines_are_found_by_device(world: World) -> None:
    world.add(5, device={"kind": "gpu", "product": "NVIDIA H200", "compute_capability": "9.0"}, backend="tensorrt")
    world.add(6, device={"kind": "gpu", "product": "NVIDIA L4", "compute_capability": "8.9"}, backend="tensorrt")
    world.add(7, device={"kind": "cpu", "product": "Some CPU"})

    async def found(**fields: Any) -> list[str]:
        answer = await world.engines.ListEngines(pb.ListEnginesRequest(parent=P, **fields), None)
        return [engine.name.rsplit("/", 1)[-1] for engine in answer.engines]

    assert await found(device="gpu") == ["e5", "e6"] and await found(device="cpu") == ["e7"]
    assert await found(device="9.0") == await found(device="nvidia h200") == ["e5"]
    assert await found(device="gpu", model=f"{P}/models/m", backend="tensorrt", page_size=1) == ["e5"]
    assert await found(device="tpu") == []


def test_engines_of_an_earlier_schema_are_found_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS[:2])
    old = Database(path)
    body = pb.Engine(name=f"{P}/engines/e", key="k", device={"kind": "gpu", "compute_capability": "8.9"})
    old.execute("INSERT INTO engines VALUES ('p', 'e', 'k', 'm', 'b', 1, 1, ?)", [body.SerializeToString()])
    old.close()
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS)
    index = EngineIndex(Database(path))
    (engine,), _ = index.page("p", Page.of(0, ""), device="8.9")
    assert engine.key == "k" and not engine.pinned


@pytest.mark.parametrize("name", ["", "projects/p/models/m/aliases", "projects/p/models/m/aliases/a/b", PROD + "/"])
def test_names_that_are_not_nested(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected"):
        parse_nested(name, "models", "aliases")
    assert str(parse_nested(PROD, "models", "aliases")) == PROD


async def test_there_is_always_a_version_to_move_to(world: World) -> None:
    await world.alias("e1")
    for version in (0, 2**53 + 1, 2**63 - 1):
        with pytest.raises(InvalidArgumentError, match="expected different ones from 1"):
            await world.serve(follow(version))
    await world.serve(follow(2**53))
    await world.alias("e2")
    assert world.served() == [(2**53 + 1, "e2", "prod")]


async def test_a_kind_of_device_is_found_in_any_case(world: World) -> None:
    world.add(4, device=pb.Device(kind="cpu", product="EPYC"))
    for device in ("cpu", "CPU", "epyc"):
        answer = await world.engines.ListEngines(pb.ListEnginesRequest(parent=P, device=device), None)
        assert [engine.name for engine in answer.engines] == [f"{P}/engines/e4"]
