"""What becomes of jobs at the edges: cancelled before they begin, taken up with other stages than they have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from enginehouse_optimizer.pipeline.blame import with_layers
from enginehouse_optimizer.pipeline.inputs import Calibration, Data, Inputs, ModelInput, Synthetic, Target, Verification
from enginehouse_optimizer.pipeline.manager import JobManager
from enginehouse_optimizer.pipeline.planner import make_plan
from enginehouse_optimizer.pipeline.reporter import JobReporter
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.stage_results import StageResult

from enginehouse.artifacts import Tree, TreeEntry
from enginehouse.errors import FailedPreconditionError, InternalError
from enginehouse.v1 import engines_pb2
from enginehouse.v1 import optimizer_pb2 as pb

DATA = Data(synthetic=Synthetic())
INPUTS = Inputs(
    ModelInput("projects/p/models/m", "sha256:" + "0" * 64, architecture="vgg16", format="zoo"),
    (Target("onnxruntime", "INT8"),),
    Verification(DATA),
    Calibration("max", DATA),
)


class Versions:
    """Of environments that need not be installed."""

    async def of(self, names: Any) -> dict[str, str]:
        return {}


class Runner:
    """Fails every stage, at once or never."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def obtain(self, *_: Any) -> StageResult:
        await self.go.wait()
        raise InternalError("no stage works here")


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database(":memory:")
    yield database
    database.close()


def manager(database: Database, jobs: Jobs, folder: Path, runner: Any) -> JobManager:
    return JobManager(
        jobs, EngineIndex(database), ProjectBlobs(folder), runner, Versions(),  # type: ignore[arg-type]
        max_queued=10, max_running=1,
    )  # fmt: skip


async def submit(manager: JobManager) -> Any:
    return await manager.submit("p", pb.OptimizeRequest(request_id=str(uuid4()), model=INPUTS.model.name), INPUTS)


async def settled(jobs: Jobs, number: int) -> None:
    for _ in range(1000):
        if jobs.by_number(number).done:
            return
        await asyncio.sleep(0.001)


async def test_a_job_that_is_cancelled_before_its_first_step_ends(database: Database, tmp_path: Path) -> None:
    jobs = Jobs(database)
    jobs_manager = manager(database, jobs, tmp_path, Runner())
    job = await submit(jobs_manager)
    jobs_manager.cancel(job)  # dispatched, and its task has not run yet
    await settled(jobs, job.number)
    assert jobs.by_number(job.number).state == pb.JOB_STATE_CANCELLED
    assert {stage.state for stage in jobs.stages(job.number)} == {pb.STAGE_STATE_CANCELLED}
    await jobs_manager.close()


async def test_a_job_that_a_stop_meets_before_its_first_step_is_taken_up(database: Database, tmp_path: Path) -> None:
    jobs = Jobs(database)
    first = manager(database, jobs, tmp_path, Runner())
    job = await submit(first)
    await first.close()
    assert not jobs.by_number(job.number).done
    runner = Runner()
    runner.go.set()
    second = manager(database, jobs, tmp_path, runner)
    assert second.resume() == 1
    await settled(jobs, job.number)
    assert jobs.by_number(job.number).state == pb.JOB_STATE_FAILED
    await second.close()


async def test_a_job_that_is_taken_up_has_the_stages_of_its_plan(database: Database, tmp_path: Path) -> None:
    jobs = Jobs(database)
    planned = [stage.name for stage in make_plan(INPUTS, {}).stages]
    # What a service that was killed left: a stage that explained a refusal, and one of an earlier version's plan.
    job = jobs.create("p", "j", pb.OptimizeRequest(), INPUTS.to_json(), ["old", *planned[:-1]])
    jobs.start(job.number)
    jobs.update_stage(job.number, planned[0], pb.STAGE_STATE_SUCCEEDED, log_digest="sha256:log")
    jobs.add_stage(job.number, "sensitivity of onnxruntime int8")
    runner = Runner()
    taken_up = manager(database, jobs, tmp_path, runner)
    taken_up.resume()
    await asyncio.sleep(0.01)
    assert [stage.name for stage in jobs.stages(job.number)] == planned
    assert jobs.log_digest(job.number, planned[0]) == "sha256:log"
    runner.go.set()
    await settled(jobs, job.number)
    assert {stage.state for stage in jobs.stages(job.number)} <= {pb.STAGE_STATE_FAILED, pb.STAGE_STATE_CANCELLED}
    await taken_up.close()


@pytest.mark.parametrize(
    "said",
    [{}, [], {"layers": 3}, {"layers": ["a"]}, {"layers": [{"name": "a", "sqnr_db": "much"}]}, {"layers": {"a": 1}}],
)
async def test_a_refusal_stays_one_when_its_explanation_is_not_as_expected(
    database: Database, tmp_path: Path, said: Any
) -> None:
    jobs = Jobs(database)
    plan = make_plan(INPUTS, {})
    blame = plan.engines[0].blame
    assert blame is not None
    store = ProjectBlobs(tmp_path).of("p")
    tree = Tree((TreeEntry("sensitivity.json", store.put_bytes(json.dumps(said).encode()), 1),))

    async def obtain(*_: Any) -> StageResult:
        return StageResult(tree, {}, "")

    job = jobs.create("p", "j", pb.OptimizeRequest(), INPUTS.to_json(), [stage.name for stage in plan.stages])
    refusal = FailedPreconditionError("the INT8 engine is refused")
    reporter = JobReporter(jobs, job.number)
    assert await with_layers(refusal, blame, plan, "p", obtain, reporter, store) is refusal


async def test_an_engine_that_is_built_again_keeps_its_bytes_while_they_are_there(
    database: Database, tmp_path: Path
) -> None:
    index, jobs_manager = EngineIndex(database), manager(database, Jobs(database), tmp_path, Runner())
    inputs = replace(INPUTS, targets=(Target("onnxruntime", "FP32"),), calibration=None)
    plan = make_plan(inputs, {})
    store = ProjectBlobs(tmp_path).of("p")
    described = {
        "backend": "onnxruntime", "backend_version": "1", "inputs": [], "outputs": [], "batched": True,
        "max_batch_size": 64,
    }  # fmt: skip

    def tree(**files: Any) -> Tree:
        texts = {name: json.dumps(value).encode() for name, value in files.items()}
        return Tree(tuple(TreeEntry(name, store.put_bytes(data), len(data)) for name, data in texts.items()))

    async def built(payload: str, samples: int) -> engines_pb2.Engine:
        results = {stage.name: StageResult(Tree(()), {}, "") for stage in plan.stages}
        engine = plan.engines[0]
        results[engine.build] = StageResult(tree(**{"engine.json": described, "model.onnx": payload}), {}, "")
        results[engine.verify] = StageResult(tree(**{"verification.json": {"samples": samples}}), {}, "")
        return index.publish([await jobs_manager._engine("p", inputs, plan, 0, results)])[0]

    first = await built("first", 1)
    assert (await built("first", 2)).verification.samples == 2, "the same bytes, measured again"
    other = await built("other", 3)
    assert other.files == first.files and other.verification.samples == 2
    assert index.find("p", first.key, first.model) == other
    store.delete(next(file.digest for file in first.files if file.path == "model.onnx"))
    repaired = await built("other", 3)
    assert repaired.files != first.files and repaired.verification.samples == 3, "a build replaces what is lost"
    assert index.find("p", first.key, first.model) == repaired
    await jobs_manager.close()
