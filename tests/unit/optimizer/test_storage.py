"""The database: migrations, transactions, jobs and their events, whatever the order."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from enginehouse_optimizer.api.operations import parse_filter
from enginehouse_optimizer.lock import DataDirLock
from enginehouse_optimizer.pipeline.reporter import JobReporter
from enginehouse_optimizer.storage import database as database_module
from enginehouse_optimizer.storage.database import MIGRATIONS, Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.storage.resources import Resources
from enginehouse_optimizer.storage.serving import ServingStore
from enginehouse_optimizer.storage.stage_results import StageResult, StageResults
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.artifacts import Tree, TreeEntry, digest_bytes
from enginehouse.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2, models_pb2, serving_pb2
from enginehouse.v1 import optimizer_pb2 as pb


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "test.sqlite")


def test_migrations_run_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    Database(path).close()
    more = (*MIGRATIONS, "CREATE TABLE added (x INTEGER);")
    monkeypatch.setattr(database_module, "MIGRATIONS", more)
    opened = Database(path)
    assert opened.version == len(more)
    opened.execute("INSERT INTO added VALUES (1)")
    opened.close()
    assert Database(path).row("SELECT x FROM added")
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS)
    with pytest.raises(FailedPreconditionError, match="later version"):
        Database(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    Database(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE half (x INTEGER); CREATE TABLE jobs (x);")
    monkeypatch.setattr(database_module, "MIGRATIONS", broken)
    with pytest.raises(FailedPreconditionError, match="not a usable database"):
        Database(path)
    tables = {row[0] for row in sqlite3.connect(path).execute("SELECT name FROM sqlite_master")}
    assert "half" not in tables
    monkeypatch.setattr(database_module, "MIGRATIONS", MIGRATIONS)
    assert Database(path).version == len(MIGRATIONS)


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(FailedPreconditionError, match="not a usable database"):
        Database(path)


def test_a_transaction_is_whole_or_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction():
        database.execute("INSERT INTO revisions VALUES ('p', 1)")
        with database.transaction():
            database.execute("INSERT INTO revisions VALUES ('q', 1)")
        raise RuntimeError
    assert database.rows("SELECT * FROM revisions") == []


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    import os

    lock = DataDirLock(tmp_path / "data")
    lock.acquire()
    with pytest.raises(FailedPreconditionError, match=f"process {os.getpid()}"):
        DataDirLock(tmp_path / "data").acquire()
    lock.release()
    DataDirLock(tmp_path / "data").acquire()


@given(count=st.integers(0, 12), size=st.integers(1, 5))
def test_pages_show_everything_once(count: int, size: int) -> None:
    database = Database(":memory:")
    models = Resources(database, "models", models_pb2.Model)
    names = [f"m{n:02}" for n in range(count)]
    for name in reversed(names):
        models.create(ResourceName("p", "models", name), name, models_pb2.Model(name=name), replace=False)
    seen, token = [], ""
    for _ in range(20):
        page, token = models.page("p", Page.of(size, token))
        seen += [model.name for model in page]
        if not token:
            break
    assert seen == names
    database.close()


@pytest.mark.parametrize("token", ["%%%", "\u2603", "abc"])
def test_tokens_that_we_did_not_make(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        Page.of(0, token)


@pytest.mark.parametrize("after", ["some-model", "\u00b2", "9" * 30])
def test_a_token_of_another_list_does_not_begin_again(database: Database, after: str) -> None:
    token = Page(1, "").next_token([after], True)
    with pytest.raises(InvalidArgumentError, match="not of this list"):
        Jobs(database).page("p", Page.of(1, token), states=[1], model="")


def test_resources_keep_what_they_have(database: Database) -> None:
    models = Resources(database, "models", models_pb2.Model)
    name = ResourceName("p", "models", "m")
    first = models.create(name, "d1", models_pb2.Model(file_name="one"), replace=False)
    assert models.create(name, "d1", models_pb2.Model(file_name="two"), replace=False) == first
    labelled = models_pb2.Model(file_name="two", labels={"stage": "test"})
    assert models.create(name, "d1", labelled, replace=True) == models.get(name) == labelled
    with pytest.raises(AlreadyExistsError):
        models.create(name, "d2", models_pb2.Model(), replace=False)
    assert models.create(name, "d2", models_pb2.Model(file_name="three"), replace=True).file_name == "three"
    assert models.get(name).file_name == "three"


def _engine(key: str = "k", data: str = "", top1: float | None = None, digest: str = "d") -> engines_pb2.Engine:
    verification = engines_pb2.Verification(data=data, top1=top1)
    files = [engines_pb2.EngineFile(path="model", digest=digest)]
    name = f"projects/p/engines/{key}"
    return engines_pb2.Engine(name=name, key=key, model="m", verification=verification, files=files)


def test_an_engine_measured_again_has_the_newest_verification(database: Database) -> None:
    index = EngineIndex(database)
    synthetic, first, second = _engine(data="synthetic"), _engine(data="a", top1=0.9), _engine(data="b", top1=0.8)
    for engine in (synthetic, first, second):
        assert index.publish([engine]) == [engine]
        assert index.find("p", "k", "m") == engine
    assert index.publish([synthetic]) == [synthetic], "what a job measured is what it answers"
    assert index.find("p", "k", "m") == second, "but labelled data says more"
    rebuilt = _engine(data="synthetic", digest="other")
    index.publish([rebuilt])
    assert index.find("p", "k", "m") == rebuilt, "the old figures are of other bytes"
    again = _engine(data="synthetic", digest="other")
    again.manifest_digest = "later"
    assert index.publish([again]) == [rebuilt], "nothing new to say of it"
    assert index.find("q", "k", "m") is None


def test_an_engine_that_cannot_be_verified_here_keeps_what_was_measured(database: Database) -> None:
    index, measured, unverified = EngineIndex(database), _engine(data="synthetic"), _engine()
    unverified.ClearField("verification")
    index.publish([unverified])
    index.publish([measured])
    index.publish([unverified])
    assert index.find("p", "k", "m") == measured


def test_engines_of_a_request_appear_together(database: Database) -> None:
    index = EngineIndex(database)
    with pytest.raises(ValueError):
        index.publish([_engine("k1"), engines_pb2.Engine(name="malformed", key="k2")])
    assert index.find("p", "k1", "m") is None


def test_revisions_rise_with_every_change(database: Database) -> None:
    store = ServingStore(database)
    name = ResourceName("p", "servingConfigs", "c")
    assert store.state("p").revision == 0
    made = store.put(name, serving_pb2.ServingConfig(), {"e"}, allow_missing=True)
    assert store.state("p").revision == 1 and store.state("q").revision == 0
    with pytest.raises(AbortedError):
        store.put(name, serving_pb2.ServingConfig(etag="other"), {"e"}, allow_missing=True)
    assert store.state("p").revision == 1, "a change that fails is none"
    store.put(name, serving_pb2.ServingConfig(etag=made.etag), set(), allow_missing=False)
    store.delete(name)
    state = store.state("p")
    assert (state.configs, state.revision) == ((), 3)
    EngineIndex(database).publish([engines_pb2.Engine(name="projects/p/engines/e", key="k")])
    EngineIndex(database).delete(ResourceName("p", "engines", "e"))


STEPS = st.lists(
    st.one_of(
        st.just(("start",)),
        st.just(("requeue",)),
        st.tuples(st.just("stage"), st.sampled_from(["a", "b", "nobody"]), st.integers(1, 6), st.floats(0, 1)),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, end=st.sampled_from([pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED]))
def test_events_tell_all_in_order_and_end_with_the_operation(steps: list[tuple[object, ...]], end: int) -> None:
    database = Database(":memory:")
    told: list[int] = []
    jobs = Jobs(database, told.append)
    job = jobs.create("p", "op", pb.OptimizeRequest(model="m"), "{}", ["a", "b"])
    for step in steps:
        if step[0] == "start":
            jobs.start(job.number)
        elif step[0] == "requeue":
            jobs.requeue(job.number)
        else:
            jobs.update_stage(job.number, str(step[1]), step[2], fraction=step[3])  # type: ignore[arg-type]
    error = None if end == pb.JOB_STATE_SUCCEEDED else status_pb2.Status(code=9, message="why")
    response = pb.OptimizeResponse() if error is None else None
    jobs.finish(job.number, end, response=response, error=error)
    events = jobs.events(job.number, 0)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len(told) == len(events)
    assert events[-1].operation == jobs.operation(jobs.by_number(job.number))
    assert events[-1].operation.done and not any(event.HasField("operation") for event in events[:-1])
    for after in range(len(events) + 1):
        assert jobs.events(job.number, after) == events[after:]
    for stage in jobs.stages(job.number):
        last = [event.stage for event in events if event.stage.name == stage.name][-1:]
        ended = stage.state in (3, 4, 5, 6)
        assert ended, "nothing runs when the job is done"
        assert (
            not last or last[0].state == stage.state or stage.state == pb.STAGE_STATE_CANCELLED or ("requeue",) in steps
        )
    jobs.delete(jobs.by_number(job.number))
    assert database.rows("SELECT * FROM events") == [] and database.rows("SELECT * FROM job_stages") == []
    database.close()


def _stored_job(jobs: Jobs, state: int | None, blob: str = "") -> int:
    request = pb.OptimizeRequest(model="projects/p/models/m", priority=3)
    job = jobs.create(
        "p", f"j{len(jobs.live())}-{state}-{blob[-3:]}", request, json.dumps({"m": {"blob": blob}}), ["freeze"]
    )
    if state is not None:
        jobs.start(job.number)
        jobs.update_stage(
            job.number, "freeze", pb.STAGE_STATE_SUCCEEDED, log_digest=f"sha256:log{job.number}", seconds=2.5
        )
        jobs.finish(job.number, state, response=None, error=None)
    return job.number


def test_jobs_name_their_blobs_until_they_are_deleted(database: Database) -> None:
    told: list[int] = []
    jobs = Jobs(database, told.append)
    ended = _stored_job(jobs, pb.JOB_STATE_FAILED, "sha256:aaa")
    live = _stored_job(jobs, None, "sha256:bbb")
    assert jobs.by_number(live).priority == 3
    (stage,) = jobs.stages(ended)
    assert stage.seconds == 2.5 and not stage.HasField("peak_memory_bytes")
    assert set(jobs.blobs()) == {("p", "sha256:bbb"), ("p", f"sha256:log{ended}")}
    told.clear()
    jobs.delete(jobs.by_number(ended))
    assert told == [ended], "whoever watches it is told"
    assert [job.number for job in jobs.live()] == [live] and database.rows("SELECT * FROM events WHERE job=1") == []
    assert set(jobs.blobs()) == {("p", "sha256:bbb")}


def test_results_that_a_live_job_may_have_taken_are_in_use(database: Database) -> None:
    results, jobs = StageResults(database), Jobs(database)
    tree = Tree((TreeEntry("a", digest_bytes(b"a"), 1),))
    for key in ("old", "taken"):
        results.put("p", key, StageResult(tree, {"seconds": 1, "peak_memory_bytes": "much"}, "sha256:log"))
    assert results.unused_since(0) == []
    number = _stored_job(jobs, None)
    results.touch("p", "taken")
    assert results.unused_since(1 << 62) == [("p", "old")]
    jobs.finish(number, pb.JOB_STATE_FAILED, response=None, error=None)
    assert sorted(results.unused_since(1 << 62)) == [("p", "old"), ("p", "taken")]
    found = results.get("p", "old")
    assert found is not None and found.seconds == 1.0 and found.peak_memory_bytes is None


def test_a_full_disk_is_told_as_such_and_costs_nothing_else(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    jobs = Jobs(database)
    number = _stored_job(jobs, None)
    pages = database.row("PRAGMA page_count")
    assert pages is not None
    database.row(f"PRAGMA max_page_count={pages[0]}")
    with pytest.raises(ResourceExhaustedError, match="free space"):
        while True:
            _stored_job(jobs, None, "sha256:" + "f" * 5000)
    reporter = JobReporter(jobs, number)
    stage = reporter.stage("freeze")
    for _ in range(200):
        stage.waiting("x" * 2000)  # more than the disk takes; not the stage's concern
    stage.failed(ResourceExhaustedError("the disk is full " * 100))
    with pytest.raises(ResourceExhaustedError):
        reporter.flush()
    database.row("PRAGMA max_page_count=100000")
    reporter.flush()
    assert jobs.stages(number)[0].state == pb.STAGE_STATE_FAILED, "what was not written is written when there is space"


@pytest.mark.parametrize(
    ("comparison", "year", "shown"),
    [(">", 2300, False), (">=", 9999, False), ("<", 9999, True), (">", 1, True), ("<", 1, False), ("<=", 1, False)],
)
def test_times_that_no_job_was_made_at_are_compared(
    database: Database, comparison: str, year: int, shown: bool
) -> None:
    jobs = Jobs(database)
    _stored_job(jobs, None)
    wanted = parse_filter(f"create_time{comparison}{year:04}-01-01T00:00:00Z")
    found, _ = jobs.page("p", Page.of(0, ""), states=wanted.states, model=wanted.model, created=wanted.created)
    assert bool(found) is shown
