"""Stages as Jobs, against recorded clusters: every end is told apart, nothing is left behind, nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.kubernetes.place import KubernetesPlace
from enginehouse_optimizer.kubernetes.template import ClusterSettings, job_name
from enginehouse_optimizer.pipeline.places import StageRun
from enginehouse_optimizer.pipeline.plan import PlannedStage
from enginehouse_optimizer.pipeline.timing import FILE, TimingCaches
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex

sys.path.insert(0, str(Path(__file__).parents[2]))

from kubernetes_fake import Account, FakeKubernetes

from enginehouse.artifacts import Tree, TreeEntry, canonical_json, digest_bytes
from enginehouse.errors import (
    AbortedError,
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.kubernetes.api import KubernetesApi

NAMESPACE = "enginehouse"
STAGE = PlannedStage(
    "build onnxruntime fp32", "build", "onnxruntime", {"precision": "FP32"}, {}, digest_bytes(b"k"), gpu="NVIDIA-H200"
)
JOB = job_name("optimizer", "build", "p", STAGE.key)
ERROR = '{"event": "error", "code": "FAILED_PRECONDITION", "message": "too rough", "details": {"sqnr_db": 3}}\n'


class Watcher:
    def __init__(self) -> None:
        self.waited: list[str] = []
        self.ran = 0
        self.progress: list[tuple[float, str]] = []

    def waits(self, message: str) -> None:
        self.waited.append(message)

    def runs(self) -> None:
        self.ran += 1

    def progresses(self, fraction: float, message: str) -> None:
        self.progress.append((fraction, message))

    def grouped(self, group: int) -> None: ...


class World:
    """A place on a fake cluster, and a store."""

    def __init__(self, folder: Path, cluster: FakeKubernetes, api: KubernetesApi) -> None:
        self.folder, self.cluster, self.api = folder, cluster, api
        self.blobs = ProjectBlobs(folder)
        self.database = Database(folder / "db")
        self.timing = TimingCaches(TimingCacheIndex(self.database), self.blobs, 1 << 20)
        self.watcher = Watcher()
        self.made = 0

    def place(self, seconds: float | None = 60.0, **settings: Any) -> KubernetesPlace:
        images = {"onnxruntime": "registry.example/worker:1"}
        given = ClusterSettings(NAMESPACE, images, "registry.example/client:1", "optimizer:8010")
        place = KubernetesPlace(given, self.blobs, self.timing, seconds)
        place.start(self.api, replace(given, **settings))
        return place

    def published(self, **files: bytes) -> str:
        """The termination message of a stage that made these files and a result."""
        store = self.blobs.of("p")
        made = {"result.json": b'{"seconds": 1.5}', **{name.replace("__", "."): data for name, data in files.items()}}
        tree = Tree(tuple(TreeEntry(name, store.put_bytes(data), len(data)) for name, data in made.items()))
        return json.dumps({"tree": store.put_bytes(canonical_json(tree.to_json()).encode())})

    async def run(self, place: KubernetesPlace, stage: PlannedStage = STAGE) -> tuple[Tree, dict[str, Any]]:
        self.made += 1
        work = self.folder / str(self.made)
        work.mkdir()
        self.log = work / "stage.log"
        return await asyncio.wait_for(place.run(StageRun("p", stage, {}, work, self.log), self.watcher), 20)

    def play(self, recording: str, job: str, **options: Any) -> None:
        self.cluster.play(recording, job, subject="worker", **options)

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.cluster.store.select("jobs", NAMESPACE, lambda _: True)]

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(500):
            if holds():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not happen in 10 s")


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with FakeKubernetes() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        async with await KubernetesApi.connect() as api:
            world = World(tmp_path, cluster, api)
            yield world
            world.database.close()


async def test_a_stage_runs_as_a_job_and_leaves_nothing(world: World) -> None:
    progress = '{"event": "progress", "fraction": 0.5, "message": "half"}\n'
    message = world.published(engine__json=b"{}")
    world.play("01-job-success", "engine-run-1", messages={"publish": message}, log=f"begins\n{progress}ends")
    tree, found = await world.run(world.place())
    assert found == {"seconds": 1.5} and {entry.path for entry in tree.entries} == {"engine.json", "result.json"}
    assert world.watcher.progress == [(0.5, "half")] and world.watcher.ran == 1
    log = world.log.read_text()
    assert "begins\nends" in log and "event" not in log
    await world.until(lambda: not world.jobs())
    assert not world.cluster.store.select("pods", NAMESPACE, lambda _: True)
    (job,) = world.cluster.created("jobs")
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    fetch, worker = pod["initContainers"]
    (publish,) = pod["containers"]
    assert [c["image"] for c in (fetch, worker, publish)] == [
        "registry.example/client:1", "registry.example/worker:1", "registry.example/client:1"
    ]  # fmt: skip
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "1"} and "resources" in fetch
    order = json.loads(world.blobs.of("p").read_bytes(fetch["command"][fetch["command"].index("--order") + 1]))
    assert order == {"stage": "build", "params": {"precision": "FP32"}, "inputs": {}}


@pytest.mark.parametrize(
    ("recording", "job", "kind", "words", "settings"),
    [
        ("02-job-pending", "pend-selector", FailedPreconditionError, "didn't match Pod's node affinity", {}),
        ("02-job-pending", "pend-gpus", ResourceExhaustedError, "Insufficient nvidia.com/gpu", {}),
        ("03-job-image-pull", "pull-missing", FailedPreconditionError, "registry.example/worker:1.*ErrImagePull", {}),
        ("03-job-image-pull", "pull-badname", FailedPreconditionError, "InvalidImageName", {"image_seconds": 600.0}),
        ("03-job-image-pull", "pull-never", FailedPreconditionError, "ErrImageNeverPull", {"image_seconds": 600.0}),
        ("04a-job-oom", "oom-b0", ResourceExhaustedError, "'worker'.*killed for want of memory", {}),
        ("04b-job-exit-code-and-deadline", "exit3-b0", InternalError, "exited with status 3.*End of its log", {}),
        ("04b-job-exit-code-and-deadline", "deadline", DeadlineExceededError, "deadline", {}),
        ("05-job-deleted-and-evicted", "del-running", AbortedError, "was deleted", {}),
        ("05-job-deleted-and-evicted", "evict-me", UnavailableError, "Eviction API: evicting", {}),
    ],
)
async def test_failures_are_told_apart(
    world: World, recording: str, job: str, kind: type[EnginehouseError], words: str, settings: dict[str, Any]
) -> None:
    world.play(recording, job, log="" if "exit3" not in job else None)
    place = world.place(**{"pending_seconds": 0.3, "image_seconds": 0.3, **settings})
    with pytest.raises(kind, match=f"(?s){words}") as caught:
        await world.run(place)
    assert type(caught.value) is kind
    await world.until(lambda: not world.jobs())


async def test_a_stage_that_says_why_it_failed_is_believed(world: World) -> None:
    world.play("04b-job-exit-code-and-deadline", "exit3-b0", log=f"trace\n{ERROR}")
    with pytest.raises(FailedPreconditionError, match=r"^too rough$") as caught:
        await world.run(world.place())
    assert caught.value.details == {"sqnr_db": "3", "stage": "build"}
    assert "trace" in world.log.read_text()


async def test_a_kill_for_want_of_memory_hides_the_last_words(world: World) -> None:
    world.play("04a-job-oom", "oom-b0", log=ERROR)
    with pytest.raises(ResourceExhaustedError, match="want of memory"):
        await world.run(world.place())


async def test_files_that_cannot_be_fetched_are_the_error(world: World) -> None:
    event = {"event": "error", "code": "UNAVAILABLE", "message": "fetching the inputs: no route", "details": {}}
    world.cluster.play("04b-job-exit-code-and-deadline", "exit3-b0", subject="fetch", log=json.dumps(event) + "\n")
    with pytest.raises(UnavailableError, match="no route"):
        await world.run(world.place())
    assert world.watcher.ran == 0


async def test_another_pod_takes_the_place_of_one_that_was_taken_away(world: World) -> None:
    world.play("05-job-deleted-and-evicted", "evict-ignored", log="working\n")
    running = asyncio.ensure_future(world.run(world.place()))
    await world.until(lambda: world.watcher.ran == 2)
    assert any("taken away" in message for message in world.watcher.waited)
    running.cancel()
    await asyncio.wait({running})
    assert "begins again in the pod" in world.log.read_text()


async def test_a_cancelled_stage_takes_its_job_with_it(world: World) -> None:
    world.play("05-job-deleted-and-evicted", "evict-ignored")
    running = asyncio.ensure_future(world.run(world.place()))
    await world.until(lambda: world.watcher.ran > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.jobs() == []


async def test_a_stage_that_runs_too_long_is_stopped(world: World) -> None:
    world.play("05-job-deleted-and-evicted", "evict-ignored")
    with pytest.raises(DeadlineExceededError, match="ENGINEHOUSE_STAGE_TIMEOUT_SECONDS"):
        await world.run(world.place(seconds=0.2))
    assert world.jobs() == []


async def test_a_service_that_comes_back_takes_its_job_up(world: World) -> None:
    started = asyncio.Event()
    loop, replay = asyncio.get_running_loop(), world.cluster
    message = world.published()
    world.play("01-job-success", "engine-run-1", messages={"publish": message}, pause=0.15)
    go_on = replay.on_job
    replay.on_job = lambda job: (loop.call_soon_threadsafe(started.set), go_on(job))[1]
    first = world.place()
    running = asyncio.ensure_future(world.run(first))
    await started.wait()
    first.leave()
    running.cancel()
    await asyncio.wait({running})
    assert world.jobs() == [JOB], "it goes on while the service is away"
    _, found = await world.run(world.place())
    assert found == {"seconds": 1.5}
    assert len(world.cluster.created("jobs")) == 2, "the second was refused: it was there"
    assert world.jobs() == []


async def test_a_failed_job_of_before_makes_way(world: World) -> None:
    world.play("04b-job-exit-code-and-deadline", "exit3-b0", pause=0.0)
    place = world.place()
    place.leave()
    running = asyncio.ensure_future(world.run(place))
    await world.until(lambda: world.jobs() == [JOB])
    running.cancel()
    await asyncio.wait({running})
    await asyncio.sleep(0.3)
    world.play("01-job-success", "engine-run-1", messages={"publish": world.published()})
    assert (await world.run(world.place()))[1] == {"seconds": 1.5}


async def test_watches_that_cannot_go_on_begin_again(world: World) -> None:
    world.play("01-job-success", "engine-run-1", messages={"publish": world.published()}, pause=0.05)
    running = asyncio.ensure_future(world.run(world.place()))
    while not running.done():
        world.cluster.store.forget()  # every open watch gets an ERROR event with code 410
        await asyncio.sleep(0.12)
    assert (await running)[1] == {"seconds": 1.5}


async def test_missing_rights_are_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cluster.tokens["nobody"] = Account.service_account(NAMESPACE, "nobody")
    monkeypatch.setenv("KUBECONFIG", str(world.cluster.kubeconfig(tmp_path / "nobody", "nobody")))
    async with await KubernetesApi.connect() as api:
        world.api = api
        with pytest.raises(PermissionDeniedError, match=r'cannot create resource "jobs" in API group "batch"'):
            await world.run(world.place())


async def test_a_job_without_a_pod_says_what_its_events_say(world: World) -> None:
    def refuse(job: Any) -> None:
        about = {"kind": "Job", "name": job["metadata"]["name"], "namespace": NAMESPACE}
        world.cluster.store.create(
            "events",
            {
                "metadata": {"name": "e1", "namespace": NAMESPACE},
                "involvedObject": about,
                "type": "Warning",
                "reason": "FailedCreate",
                "message": "pods is forbidden: exceeded quota",
            },
        )

    world.cluster.on_job = refuse
    running = asyncio.ensure_future(world.run(world.place()))
    await world.until(lambda: any("exceeded quota" in message for message in world.watcher.waited))
    running.cancel()
    await asyncio.wait({running})


async def test_builds_hand_timing_caches_on(world: World) -> None:
    stage = replace(STAGE, timing_cache="NVIDIA-H200, worker:1")
    for number, data in enumerate((b"measured", b"measured more")):
        message = world.published(engine__json=b"{}", timing__cache=data)
        world.play("01-job-success", "engine-run-1", messages={"publish": message})
        tree, _ = await world.run(world.place(), replace(stage, key=digest_bytes(bytes([number]))))
        assert tree.find(FILE) is None
    order = world.cluster.created("jobs")[1]["spec"]["template"]["spec"]["initContainers"][0]["command"]
    given = json.loads(world.blobs.of("p").read_bytes(order[order.index("--order") + 1]))["inputs"]["timing_cache"]
    assert [entry["digest"] for entry in given] == [digest_bytes(b"measured")]
    assert world.timing.tree("p", "NVIDIA-H200, worker:1").entries[0].digest == digest_bytes(b"measured more")


async def test_jobs_that_nobody_wants_are_swept(world: World) -> None:
    place = world.place()
    place.leave()
    running = asyncio.ensure_future(world.run(place))
    await world.until(lambda: world.jobs() == [JOB])
    running.cancel()
    await asyncio.wait({running})
    assert await world.place(instance="another").sweep() == 0
    assert await world.place().sweep() == 1
    assert world.jobs() == []
