"""Aliases where engines are named, and in what is to be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_servers import PROJECT, Servers

from enginehouse import AsyncClient, AutomaticExclusion, Calibration, Synthetic, Target, VerificationSpec
from enginehouse.calibration import read_cache, table_text
from enginehouse.client.resources import alias_name, alias_text
from enginehouse.client.serving import Edit, edited
from enginehouse.client.values import ServedVersion, ServingConfig
from enginehouse.errors import InvalidArgumentError

PROD, OTHER = f"{PROJECT}/models/m/aliases/prod", f"{PROJECT}/models/m/aliases/other"
E1, E2 = f"{PROJECT}/engines/e1", f"{PROJECT}/engines/e2"


def test_names_of_aliases() -> None:
    assert alias_name("m:prod", PROJECT) == alias_name(PROD, PROJECT) == PROD and alias_text(PROD) == "m:prod"
    assert alias_name("engine-1", PROJECT) is None and alias_name(E1, PROJECT) is None and alias_text("") == ""
    for wrong in (":prod", "m:", "a:b:c"):
        with pytest.raises(InvalidArgumentError, match="expected"):
            alias_name(wrong, PROJECT)


def _versions(config: ServingConfig) -> list[tuple[int, str, str]]:
    return [(v.version, v.engine, v.alias) for v in config.versions]


def test_edits_with_aliases() -> None:
    follow = Edit(alias=PROD)
    first, version = edited(ServingConfig("c"), follow)
    assert version == 1 and _versions(first) == [(1, "", PROD)]
    # The server filled the engine in.
    stored = ServingConfig("c", (ServedVersion(1, E1, PROD),))
    assert edited(stored, follow) == (stored, 1), "nothing to change, whatever engine it stands for"
    changed, version = edited(stored, Edit(alias=PROD, instances=2))
    assert version == 2 and _versions(changed) == [(2, "", PROD)], "one version follows an alias"
    fixed, version = edited(stored, Edit(engine=E1))
    assert version == 2 and _versions(fixed) == [(1, E1, PROD), (2, E1, "")], "that engine, and no alias"
    both, version = edited(fixed, Edit(alias=OTHER))
    assert version == 3 and [v.alias for v in both.versions] == [PROD, "", OTHER]
    assert edited(fixed, Edit(alias=PROD, version=1))[1] == 1
    with pytest.raises(InvalidArgumentError, match="version 2"):
        edited(fixed, Edit(alias=PROD, version=2))
    moved, _ = edited(fixed, Edit(alias=PROD, version=7))
    assert [(v.version, v.alias) for v in moved.versions] == [(2, ""), (7, PROD)]


async def test_aliases_stand_for_engines(client: AsyncClient, servers: Servers) -> None:
    for name in (E1, E2):
        servers.engines.engines[name] = _engine(name)
    await client.engines.set_alias("m:prod", "e1")
    assert (await client.engines.get("m:prod")).name == E1
    alias = await client.engines.set_alias("m:prod", "e2")
    assert (await client.engines.get(alias)).aliases == ("prod",) and alias.short == "m:prod"
    await client.engines.set_alias("m:staging", "m:prod")
    assert [a.engine for a in await client.engines.list_aliases()] == [E2, E2]
    config = await client.load("m", "m:prod", wait=False)
    assert _versions(config) == [(1, "", PROD)]
    await client.engines.pin("m:prod")
    assert (await client.engines.get("e2")).pinned
    await client.engines.delete_alias("m:prod")
    assert [a.short for a in await client.engines.list_aliases("m")] == ["m:staging"]
    with pytest.raises(InvalidArgumentError):
        await client.engines.get_alias("e1")


def _engine(name: str) -> object:
    from enginehouse.v1 import engines_pb2

    return engines_pb2.Engine(name=name, model=f"{PROJECT}/models/m")


async def test_an_optimization_takes_every_option(client: AsyncClient, servers: Servers, tmp_path: Path) -> None:
    automatic = AutomaticExclusion(25.0, 4)
    await client.optimize(
        "m",
        [Target("onnxruntime", "int8")],
        calibration=Calibration("mse", synthetic=Synthetic(samples=8), automatic_exclusion=automatic),
        verification=VerificationSpec(per_layer=True),
        fold_preprocessing=True,
        priority=7,
    )
    request = servers.optimizer.requests[-1]
    assert request.calibration.automatic_exclusion.minimum_sqnr_db == 25.0
    assert request.calibration.automatic_exclusion.max_layers == 4 and request.verification.per_layer
    assert (request.fold_preprocessing, request.priority) == (True, 7)
    table, cache = tmp_path / "table.json", tmp_path / "table.cache"
    cache.write_text("TRT-8600-EntropyCalibration2\ninput: 3f800000\n")
    text = table_text(read_cache(cache.read_text()))
    table.write_text(text)
    # The server takes no TensorRT cache: what it is given is the table that the cache means.
    for given in (table, str(table), cache):
        await client.optimize("m", [Target("onnxruntime", "int8")], calibration=Calibration(table=given))
        digest = servers.optimizer.requests[-1].calibration.table
        assert servers.blobs.whole[digest] == text.encode()
    await client.optimize("m", [Target("onnxruntime", "int8")], calibration=Calibration(table=digest))
    assert servers.optimizer.requests[-1].calibration.table == digest
    for wrong in (Calibration(table=tmp_path / "none"), Calibration(table=table, synthetic=Synthetic())):
        with pytest.raises(InvalidArgumentError, match="table"):
            await client.optimize("m", [Target("onnxruntime", "int8")], calibration=wrong)
    assert not AutomaticExclusion().to_proto().HasField("minimum_sqnr_db"), "the server's choice"
