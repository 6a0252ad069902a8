"""Running plans: order, failure, cancellation, and waking those who watch; stages are coroutines here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.pipeline.executor import execute
from enginehouse_optimizer.pipeline.flights import Listener
from enginehouse_optimizer.pipeline.inputs import Calibration, Data, Inputs, ModelInput, Synthetic, Target, Verification
from enginehouse_optimizer.pipeline.plan import PlannedStage
from enginehouse_optimizer.pipeline.planner import make_plan
from enginehouse_optimizer.storage.stage_results import StageResult
from enginehouse_optimizer.threads import in_thread

from enginehouse.artifacts import Tree, TreeEntry, digest_bytes
from enginehouse.errors import FailedPreconditionError, InternalError, UnavailableError

DATA = Data(synthetic=Synthetic())
INPUTS = Inputs(
    ModelInput("projects/p/models/m", "sha256:1", architecture="vgg16"),
    (Target("onnxruntime", "INT8"), Target("tensorflow", "FP32")),
    Verification(DATA),
    Calibration("max", DATA),
)
PLAN = make_plan(INPUTS, {})


class Recorder:
    """A reporter of all stages, that keeps their ends."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}

    def stage(self, name: str) -> StageRecorder:
        return StageRecorder(self, name)


class StageRecorder:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def _end(self, how: str) -> None:
        assert self._name not in self._recorder.ends
        self._recorder.ends[self._name] = how

    def reused(self, log_digest: str) -> None: ...
    def running(self, log: Path) -> None: ...
    def progress(self, fraction: float, message: str) -> None: ...
    def logged(self, log_digest: str) -> None: ...
    def succeeded(self) -> None:
        self._end("succeeded")

    def failed(self, error: Exception) -> None:
        self._end("failed")

    def cancelled(self) -> None:
        self._end("cancelled")


class Stages:
    """Takes a random moment for each stage; fails or hangs in the ones named."""

    def __init__(self, seed: int, fail: str = "", hang: str = "") -> None:
        self.random, self.fail, self.hang = random.Random(seed), fail, hang
        self.error: Exception = FailedPreconditionError("no", details={"a": "b"})
        self.done: list[str] = []
        self.running = 0

    async def obtain(
        self, project: str, stage: PlannedStage, outputs: Mapping[str, Tree], listener: Listener
    ) -> StageResult:
        assert {name: tree.entries[0].path for name, tree in outputs.items()} == {
            name: source.stage for name, source in stage.inputs.items() if hasattr(source, "stage")
        }
        self.running += 1
        try:
            await asyncio.sleep(self.random.random() / 100)
            if stage.name == self.hang:
                await asyncio.Event().wait()
            if stage.name == self.fail:
                raise self.error
        finally:
            self.running -= 1
        self.done.append(stage.name)
        return StageResult(Tree((TreeEntry(stage.name, digest_bytes(b""), 0),)), {}, "")


@pytest.mark.parametrize("seed", range(5))
async def test_every_stage_runs_after_what_it_needs(seed: int) -> None:
    stages, recorder = Stages(seed), Recorder()
    results = await execute("p", PLAN, stages.obtain, recorder)
    assert set(results) == {stage.name for stage in PLAN.stages} == set(stages.done)
    for stage in PLAN.stages:
        for need in stage.needs:
            assert stages.done.index(need) < stages.done.index(stage.name)
    assert set(recorder.ends.values()) == {"succeeded"}


@pytest.mark.parametrize("fail", [stage.name for stage in PLAN.stages])
async def test_a_failure_stops_the_rest(fail: str) -> None:
    stages, recorder = Stages(1, fail=fail), Recorder()
    with pytest.raises(FailedPreconditionError, match="failed: no") as caught:
        await execute("p", PLAN, stages.obtain, recorder)
    assert caught.value.details == {"a": "b", "stage": fail}
    assert stages.running == 0
    assert [name for name, end in recorder.ends.items() if end == "failed"] == [fail]


async def test_a_stage_that_breaks_is_told_as_failed() -> None:
    stages, recorder = Stages(1, fail="convert"), Recorder()
    stages.error = PermissionError("not yours")
    with pytest.raises(InternalError, match="stage 'convert' failed: PermissionError: not yours"):
        await execute("p", PLAN, stages.obtain, recorder)
    assert recorder.ends["convert"] == "failed"


async def test_cancellation_reaches_what_runs() -> None:
    stages, recorder = Stages(2, hang="convert"), Recorder()
    task = asyncio.ensure_future(execute("p", PLAN, stages.obtain, recorder))
    while "freeze" not in stages.done:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stages.running == 0 and recorder.ends["convert"] == "cancelled"


async def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    notifier = Notifier()
    with notifier.watch("key") as watch:
        watch.arm()
        notifier.notify("key")
        notifier.notify("other")
        assert await watch.wait(1)
        watch.arm()
        assert not await watch.wait(0.01)
        notifier.close()
        watch.arm()
        with pytest.raises(UnavailableError):
            await watch.wait(1)


async def test_a_thread_is_finished_before_its_caller_goes_on() -> None:
    import time

    done: list[int] = []

    def work() -> None:
        time.sleep(0.1)
        done.append(1)

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]
