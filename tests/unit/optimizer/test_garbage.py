"""Garbage collection takes what nobody needs and nothing else, in any order of events; a check finds what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from enginehouse_optimizer.pipeline.publish import engine_message
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.check import Finding, StoreChecker, Totals
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.garbage import Collected, GarbageCollector, Retention
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.named import NamedBlobs
from enginehouse_optimizer.storage.resources import Resources
from enginehouse_optimizer.storage.stage_results import StageResult, StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCache, TimingCacheIndex
from enginehouse_optimizer.storage.usage import usage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from enginehouse.artifacts import Tree, TreeEntry, digest_bytes
from enginehouse.artifacts.manifest import DeviceSpec, EngineManifest, ProfileSpec
from enginehouse.names import ResourceName
from enginehouse.v1 import models_pb2
from enginehouse.v1 import optimizer_pb2 as pb

T = TypeVar("T")
DAY = 86400.0


class World:
    """A store with all that names blobs, without a service around it."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(":memory:")
        self.jobs = Jobs(self.database)
        self.results = StageResults(self.database)
        self.caches = TimingCacheIndex(self.database)
        self.engines = EngineIndex(self.database)
        self.models = Resources(self.database, "models", models_pb2.Model)
        self.named = NamedBlobs(self.database, self.jobs)
        self.blobs = ProjectBlobs(folder)
        self.store = self.blobs.of("p")
        self.retention = Retention(30 * DAY, 30 * DAY, 7 * DAY, 30 * DAY)
        self.checker = StoreChecker(self.named, self.engines, self.results, self.caches, self.blobs)

    def collector(self, **changes: float) -> GarbageCollector:
        retention = replace(self.retention, **changes)
        return GarbageCollector(self.database, self.jobs, self.results, self.caches, self.named, self.blobs, retention)

    def collect(self, **options: Any) -> Collected:
        return run(self.collector().collect("p", **options))

    def put(self, data: bytes, *, age: float = 0.0) -> str:
        """Store a blob as if by a process `age` seconds ago."""
        digest = self.store.put_bytes(data)
        if age:
            self.age(digest, age)
        return digest

    def age(self, digest: str, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self.store.path(digest), (then, then))
        self.store._uses.forget(time.time_ns() + 1)

    def name(self, digest: str, model: str = "m") -> None:
        name = ResourceName("p", "models", model)
        self.models.create(name, digest, models_pb2.Model(name=str(name), blob=digest), replace=True)

    def job(self, **inputs: str) -> int:
        return self.jobs.create("p", os.urandom(4).hex(), pb.OptimizeRequest(), json.dumps(inputs), ["build"]).number

    def result(self, key: str, digest: str, *, unused: float = 0.0) -> None:
        self.results.put("p", key, StageResult(Tree((TreeEntry("f", digest, 1),)), {}, ""))
        then = time.time_ns() - round(unused * 1e9)
        self.database.execute("UPDATE stage_results SET used_ns=? WHERE key=?", (then, key))

    def engine(self, payload: str) -> Any:
        key = digest_bytes(b"what determines it")
        files = Tree((TreeEntry("model.onnx", payload, 1),))
        manifest = EngineManifest(
            key, "projects/p/models/m", key, "FP32", "onnxruntime", "1", DeviceSpec("cpu"), ProfileSpec(1, 1, 1),
            (), (), True, 1, files, create_time="2026-01-01T00:00:00Z",
        )  # fmt: skip
        digest = self.store.put_bytes(manifest.to_json().encode())
        engine = engine_message("projects/p/engines/e", manifest, digest)
        self.engines.publish([engine])
        return engine

    def check(self, repair: bool = False) -> tuple[list[Finding], Totals]:
        async def all_of() -> list[Any]:
            return [found async for found in self.checker.check("p", repair=repair)]

        *findings, totals = run(all_of())
        return findings, totals


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_nothing_names_goes_and_the_rest_stays(world: World) -> None:
    old = {name: world.put(name.encode(), age=DAY) for name in ("model", "input", "log", "result", "engine", "nobody")}
    young = world.put(b"young")
    world.name(old["model"])
    number = world.job(blob=old["input"])
    world.jobs.update_stage(number, "build", pb.STAGE_STATE_SUCCEEDED, log_digest=old["log"])
    world.result("key", old["result"])
    engine = world.engine(old["engine"])
    world.age(engine.manifest_digest, DAY)
    dry = world.collect(dry_run=True)
    assert dry == Collected(blobs=1, bytes=len(b"nobody")) and world.store.has(old["nobody"])
    world.jobs.finish(number, pb.JOB_STATE_SUCCEEDED, response=None, error=None)
    assert world.collect() == Collected(blobs=2, bytes=len(b"nobodyinput")), "the job is done with its input"
    for digest in (old["model"], old["log"], old["result"], old["engine"], engine.manifest_digest, young):
        assert world.store.has(digest)
    assert world.collect() == Collected()


def test_what_is_past_its_time_goes(world: World) -> None:
    stale, kept = world.put(b"stale", age=40 * DAY), world.put(b"kept", age=40 * DAY)
    world.result("stale", stale, unused=31 * DAY)
    world.result("kept", kept, unused=29 * DAY)
    number = world.job()
    world.jobs.finish(number, pb.JOB_STATE_FAILED, response=None, error=None)
    world.database.execute("UPDATE jobs SET end_ns=?", (time.time_ns() - round(31 * DAY * 1e9),))
    upload = digest_bytes(b"never finished")
    world.store.append(upload, 0, b"never")
    then = time.time() - 8 * DAY
    os.utime(world.store.uploads.path(upload), (then, then))
    wanted = Collected(1, 5, stage_results=1, finished_operations=1, unfinished_uploads=1)
    assert world.collect(dry_run=True) == wanted
    assert world.results.get("p", "stale") and world.jobs.by_number(number), "a dry run changes nothing"
    assert world.store.committed_bytes(upload) == 5
    assert world.collect() == wanted
    assert world.results.get("p", "stale") is None and world.results.get("p", "kept") is not None
    assert world.store.committed_bytes(upload) == 0
    assert world.collect(results_unused_seconds=28 * DAY).stage_results == 1


def test_a_timing_cache_is_kept_counted_and_checked(world: World) -> None:
    digest = world.put(b"measured", age=40 * DAY)
    world.caches.put("p", "H200", TimingCache(digest, 8))
    assert world.collect() == Collected() and world.store.has(digest)
    assert usage(world.store, world.named.of("p")).named["timing caches"] == 8
    world.store.delete(digest)
    (found,) = world.check()[0]
    assert (found.kind, found.digest, found.resource) == ("missing", digest, "H200")
    assert world.check(repair=True)[0][0].repaired and world.caches.get("p", "H200") is None
    world.caches.put("p", "H200", TimingCache(world.put(b"measured", age=40 * DAY), 8))
    assert world.collect(results_unused_seconds=0).blobs == 1, "no build has given it back for so long"
    assert world.caches.get("p", "H200") is None


def test_quarantine_is_kept_for_its_time(world: World) -> None:
    world.store.put_away(world.put(b"x"))
    assert world.collect(minimum_age_seconds=0).quarantined == 0
    assert run(world.collector(quarantine=0).collect("p")).quarantined == 1
    assert world.store.quarantine.size() == 0


def test_what_a_job_made_stays_while_it_runs(world: World) -> None:
    world.job()
    made = world.put(b"output of a stage that no result names yet")
    assert world.collect(minimum_age_seconds=0) == Collected()
    assert world.store.has(made)


def test_an_old_blob_uploaded_again_is_young(world: World) -> None:
    digests = [world.put(bytes([n]), age=DAY) for n in range(4)]
    world.store.put_bytes(bytes([0]))
    world.store.finish(digests[1], 1)
    world.store.touch(digests[2])
    assert world.collect().blobs == 1
    assert [world.store.has(digest) for digest in digests] == [True, True, True, False]


def test_other_projects_stay(world: World) -> None:
    other = world.blobs.of("q")
    digest = other.put_bytes(b"x")
    os.utime(other.path(digest), (1, 1))
    other._uses.forget(time.time_ns() + 1)
    world.collect(minimum_age_seconds=0)
    assert other.has(digest)
    run(world.collector().collect_all())
    assert not other.has(digest)


async def test_uploads_named_while_garbage_is_collected_survive(world: World) -> None:
    """Old blobs are uploaded again and named, each by one of many tasks, while collections run: none may be lost."""
    contents = [f"content {n}".encode() for n in range(60)]
    for data in contents:
        world.put(data, age=DAY)
    named: list[str] = []

    async def upload(number: int) -> None:
        await asyncio.sleep(0.001 * (number % 20))
        digest = digest_bytes(contents[number])

        def send() -> None:
            # What the API does: look, and send what is not there.
            world.store.touch(digest)
            if not world.store.has(digest):
                world.store.append(digest, 0, contents[number])
                world.store.finish(digest, len(contents[number]))

        await asyncio.to_thread(send)
        await asyncio.sleep(0.002)
        world.name(digest, f"m{number}")
        named.append(digest)

    async def collect() -> int:
        collector = world.collector()
        return sum([(await collector.collect("p")).blobs for _ in range(15)])

    taken, *_ = await asyncio.gather(collect(), *(upload(number) for number in range(0, 60, 2)))
    assert taken >= 30, "those that nobody uploaded"
    assert len(named) == 30 and all(world.store.read_bytes(digest) for digest in named)


class GarbageMachine(RuleBasedStateMachine):
    """Put, name, unname, age and collect in any order: what is named or young is always there."""

    folder: Path
    CONTENTS = [b"a", b"b", b"c", b"d"]

    def __init__(self) -> None:
        super().__init__()
        GarbageMachine.counter = getattr(GarbageMachine, "counter", 0) + 1
        self.world = World(self.folder / str(GarbageMachine.counter))
        self.stored: set[bytes] = set()
        self.young: set[bytes] = set()
        self.named: dict[str, bytes] = {}

    def teardown(self) -> None:
        self.world.database.close()

    content = st.sampled_from(CONTENTS)
    model = st.sampled_from(["m1", "m2"])

    @rule(content=content, how=st.sampled_from(["put", "upload"]))
    def put(self, content: bytes, how: str) -> None:
        store, digest = self.world.store, digest_bytes(content)
        if how == "put":
            store.put_bytes(content)
        else:
            if not store.has(digest):
                store.append(digest, store.committed_bytes(digest), content)
            store.finish(digest, len(content))
        self.stored.add(content)
        self.young.add(content)

    @rule()
    def a_day_passes(self) -> None:
        for content in self.stored:
            self.world.age(digest_bytes(content), DAY)
        self.young.clear()

    @rule(content=content, model=model)
    def name(self, content: bytes, model: str) -> None:
        if content in self.stored:
            self.world.name(digest_bytes(content), model)
            self.named[model] = content

    @rule(model=model)
    def unname(self, model: str) -> None:
        if model in self.named:
            self.world.models.delete(ResourceName("p", "models", model))
            del self.named[model]

    @rule(dry_run=st.booleans())
    def collect(self, dry_run: bool) -> None:
        kept = self.young | set(self.named.values())
        collected = self.world.collect(dry_run=dry_run)
        assert collected.blobs == len(self.stored - kept)
        if not dry_run:
            self.stored &= kept

    @invariant()
    def the_store_has_what_it_should(self) -> None:
        for content in self.CONTENTS:
            assert self.world.store.has(digest_bytes(content)) == (content in self.stored)


def test_any_order_of_events(tmp_path: Path) -> None:
    GarbageMachine.folder = tmp_path
    run_state_machine_as_test(GarbageMachine, settings=settings(max_examples=20, stateful_step_count=20, deadline=None))


def test_a_check_finds_what_is_wrong(world: World) -> None:
    payload, model, result = (world.put(name) for name in (b"payload", b"model", b"result"))
    world.name(model)
    world.result("key", result)
    engine = world.engine(payload)
    assert world.check() == ([], Totals(blobs=4, bytes=world_bytes(world), findings=0, engines=1))

    location = world.store.path(payload)
    before = location.stat()
    location.chmod(0o644)
    location.write_bytes(b"pbyload")
    os.utime(location, ns=(before.st_atime_ns, before.st_mtime_ns))
    world.store.delete(result)
    world.store.delete(model)
    other = engine.__class__.FromString(engine.SerializeToString())
    other.files[0].digest = model
    world.database.execute("UPDATE engines SET body=?", (other.SerializeToString(),))
    findings, totals = world.check()
    assert {(f.kind, f.digest, f.resource) for f in findings} == {
        ("damaged", payload, ""),
        ("missing", model, "projects/p/models/m"),
        ("missing", model, engine.name),
        ("missing", result, "key"),
        ("inconsistent", engine.manifest_digest, engine.name),
    }
    assert totals.findings == 5 and not any(f.repaired for f in findings)
    assert "files" in next(f.message for f in findings if f.kind == "inconsistent")

    repaired = {(f.kind, f.digest) for f in world.check(repair=True)[0] if f.repaired}
    assert repaired == {("damaged", payload), ("missing", result)}
    assert world.results.get("p", "key") is None and not world.store.has(payload)
    assert world.store.quarantine.size() == 7


def world_bytes(world: World) -> int:
    return sum(blob.size for blob in world.store.listing())


def test_usage_counts_each_byte_once(world: World) -> None:
    shared, garbage = world.put(b"12345"), world.put(b"123")
    world.name(shared)
    world.result("key", shared)
    found = usage(world.store, world.named.of("p"))
    assert (found.blobs, found.bytes, found.garbage) == (2, 8, 3)
    assert {kind: size for kind, size in found.named.items() if size} == {"models": 5}
    assert world.store.has(garbage)


@pytest.mark.parametrize("seconds", [1e12, 9e18, float("inf")])
def test_ages_beyond_all_time_collect_nothing(world: World, seconds: float) -> None:
    digest = world.put(b"x", age=DAY)
    world.result("key", digest, unused=DAY)
    world.jobs.finish(world.job(), pb.JOB_STATE_FAILED, response=None, error=None)
    assert world.collect(minimum_age_seconds=seconds, results_unused_seconds=seconds) == Collected()
    ever = dict.fromkeys(("stage_results", "operations", "uploads", "quarantine"), seconds)
    assert run(world.collector(**ever).collect("p")) == Collected()
    assert world.store.has(digest)


def test_blobs_that_were_never_there_are_forgotten(world: World) -> None:
    kept = world.put(b"kept")
    world.name(kept)
    asked = [digest_bytes(bytes([n])) for n in range(50)]
    assert not any(world.store.claim(digest) for digest in asked)
    world.collect(minimum_age_seconds=0, dry_run=True)
    assert all(world.store.last_use(digest) for digest in asked)
    world.collect()
    assert all(world.store.last_use(digest) for digest in asked), "they may be uploaded any moment"
    world.collect(minimum_age_seconds=0)
    assert not any(world.store.last_use(digest) for digest in asked)
    assert world.store.last_use(kept), "what is there was used, however old"


def test_a_store_without_its_blobs_is_checked_in_one_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        digest = world.put(bytes([number]))
        world.result(f"key {number}", digest)
        world.store.delete(digest)
    looks = 0
    real = world.named.required

    def required(project: str) -> Any:
        nonlocal looks
        looks += 1
        return real(project)

    monkeypatch.setattr(world.named, "required", required)
    findings, totals = world.check(repair=True)
    assert totals.findings == len(findings) == 40 and all(found.repaired for found in findings)
    assert looks <= 2, "the database is not read again for each blob"
