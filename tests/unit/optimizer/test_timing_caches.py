"""Timing caches: which build gets which, what comes of two builds at once, and that none of them can fail a build."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from enginehouse_optimizer.pipeline.flights import StageRunner
from enginehouse_optimizer.pipeline.inputs import Data as Source
from enginehouse_optimizer.pipeline.inputs import Inputs, ModelInput, Synthetic, Target, Verification
from enginehouse_optimizer.pipeline.places import LocalPlace
from enginehouse_optimizer.pipeline.plan import PlannedStage
from enginehouse_optimizer.pipeline.planner import make_plan
from enginehouse_optimizer.pipeline.slots import StageQueue, StageSlots
from enginehouse_optimizer.pipeline.timing import TimingCaches, timing_cache_name
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.stage_costs import StageCosts
from enginehouse_optimizer.storage.stage_results import StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCache, TimingCacheIndex

from enginehouse.artifacts import digest_bytes
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments
from enginehouse.workers.stage import StageLimits

FAKE_WORKER = Path(__file__).parents[1] / "workers" / "fake_worker"
H200, DRIVER = '["NVIDIA H200"]', "580.65.06"
NAME = "NVIDIA H200, driver 580.65.06, tensorrt 8.6.0"


def environment(**packages: str) -> str:
    return json.dumps({"python": "3.10.13", "packages": {"numpy": "2.2.6", **packages}, "sources": "ab"})


def test_a_cache_is_of_a_gpu_a_driver_and_a_version() -> None:
    assert timing_cache_name(environment(tensorrt="8.6.0"), H200, DRIVER) == NAME
    others = [
        timing_cache_name(environment(tensorrt="8.6.1"), H200, DRIVER),
        timing_cache_name(environment(tensorrt="8.6.0"), '["NVIDIA L4"]', DRIVER),
        timing_cache_name(environment(tensorrt="8.6.0"), H200, "535.1"),
        timing_cache_name(environment(tensorrt="8.6.0"), "[]", ""),
    ]
    assert len({NAME, *others}) == 5 and all(others)
    assert timing_cache_name(environment(), H200, DRIVER) == "", "there is no TensorRT to have one"
    assert timing_cache_name("not JSON", H200, DRIVER) == timing_cache_name("[]", H200, DRIVER) == ""


def test_a_cache_is_no_part_of_any_key() -> None:
    inputs = Inputs(
        ModelInput("projects/p/models/m", "sha256:1", architecture="vgg16", format="zoo"),
        (Target("tensorrt", "FP16"), Target("onnxruntime", "FP32")),
        Verification(Source(synthetic=Synthetic())),
    )
    versions = {"tensorrt": environment(tensorrt="8.6.0"), "gpu": H200}
    one, two = (make_plan(inputs, {**versions, "driver": driver}) for driver in (DRIVER, "535.1"))
    assert one.stage("build tensorrt fp16").timing_cache == NAME
    assert one.stage("build tensorrt fp16").timing_cache != two.stage("build tensorrt fp16").timing_cache
    assert [stage.key for stage in one.stages] == [stage.key for stage in two.stages]
    assert [stage.name for stage in one.stages if stage.timing_cache] == ["build tensorrt fp16"]


class World:
    """Caches in a store, without a service around them."""

    def __init__(self, folder: Path, max_bytes: int = 100) -> None:
        self.folder = folder
        self.database = Database(":memory:")
        self.index = TimingCacheIndex(self.database)
        self.blobs = ProjectBlobs(folder / "data")
        self.caches = TimingCaches(self.index, self.blobs, max_bytes)
        self._builds = 0

    async def begin(self) -> tuple[Path, str]:
        """A build's folder, and the digest that it was given."""
        self._builds += 1
        folder = self.folder / f"build{self._builds}"
        given = await self.caches.give("p", "gpu", folder / "in")
        (folder / "out").mkdir()
        return folder, given

    async def end(self, folder: Path, given: str, measured: str) -> None:
        known = folder / "in" / "timing.cache"
        (folder / "out" / "timing.cache").write_text((known.read_text() if known.exists() else "") + measured)
        await self.caches.take_back("p", "gpu", folder / "out", given)
        assert not list((folder / "out").iterdir()), "it is no file of the engine"

    async def build(self, measured: str) -> None:
        folder, given = await self.begin()
        await self.end(folder, given, measured)

    def content(self) -> str | None:
        cache = self.index.get("p", "gpu")
        return None if cache is None else self.blobs.of("p").read_bytes(cache.digest).decode()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.database.close()


async def test_what_builds_measured_adds_up(world: World) -> None:
    for measured in ("a", "b", "c"):
        await world.build(measured)
    assert world.content() == "abc"
    assert (await world.begin())[0].joinpath("in", "timing.cache").read_text() == "abc"


async def test_of_two_builds_at_once_the_larger_cache_stays(world: World) -> None:
    await world.build("a")
    first, second = await world.begin(), await world.begin()
    await world.end(*first, "much more")
    await world.end(*second, "less")
    assert world.content() == "amuch more"
    first, second = await world.begin(), await world.begin()
    await world.end(*first, "1")
    await world.end(*second, "123")
    assert world.content() == "amuch more123"


async def test_a_smaller_cache_replaces_the_one_it_was_made_of(world: World) -> None:
    """TensorRT begins anew with a cache that it does not take: that one is of no use to anybody."""
    await world.build("of another driver")
    folder, given = await world.begin()
    (folder / "in" / "timing.cache").unlink()
    await world.end(folder, given, "new")
    assert world.content() == "new"


async def test_a_cache_that_is_full_is_begun_anew(world: World) -> None:
    await world.build("x" * 100)
    await world.build("y")
    assert world.content() is None
    await world.build("z")
    assert world.content() == "z"


async def test_none_is_kept_where_none_may_be(tmp_path: Path) -> None:
    world = World(tmp_path, max_bytes=0)
    await world.build("a")
    assert world.content() is None


async def test_a_lost_or_damaged_cache_costs_no_build(world: World) -> None:
    world.index.put("p", "gpu", TimingCache(digest_bytes(b"gone"), 4))
    await world.build("a")
    assert world.content() == "a"
    cache = world.index.get("p", "gpu")
    assert cache is not None
    file = world.blobs.of("p").path(cache.digest)
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    folder, given = await world.begin()
    assert given == "" and not (folder / "in" / "timing.cache").exists()
    await world.end(folder, given, "b")
    assert world.content() == "b"


class Silent:
    """Listens to a stage and says nothing."""

    urgency = (0, 0)

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


async def test_builds_hand_it_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_WORKER_PATH", str(FAKE_WORKER))
    environments = WorkerEnvironments(world.folder, {"trt": WorkerEnvironment("trt", Path(sys.executable))})
    results = StageResults(world.database)
    runner = StageRunner(
        results,
        StageCosts(world.database),
        world.blobs,
        world.folder / "work",
        (LocalPlace(world.blobs, environments, StageLimits(60), world.caches), StageQueue(StageSlots())),
    )
    params = {"backend": "tensorrt", "precision": "FP16", "profile": {"min": 1, "opt": 1, "max": 1}}
    stage = PlannedStage("build tensorrt fp16", "build", "trt", params, {}, digest_bytes(b"1"), "gpu")
    for number in range(3):
        result = await runner.obtain("p", replace(stage, key=digest_bytes(bytes([number]))), {}, Silent())  # type: ignore[arg-type]
        assert result.tree.find("engine.json") and result.tree.find("timing.cache") is None
    assert world.content() == "measured;" * 3
    await runner.obtain("p", replace(stage, key=digest_bytes(b"other"), timing_cache=""), {}, Silent())  # type: ignore[arg-type]
    assert world.content() == "measured;" * 3, "a build of a backend without one leaves it alone"
