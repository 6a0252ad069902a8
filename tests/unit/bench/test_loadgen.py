"""MLPerf's LoadGen, the real one, on targets that answer at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginehouse.bench.loadgen.bench import Plan, agreement, plan_for
from enginehouse.bench.loadgen.run import DETAIL, SUMMARY, THREAD, run_scenario
from enginehouse.bench.loadgen.scenarios import OFFICIAL_QUERIES, SCENARIOS, Scenario
from enginehouse.bench.loadgen.summary import parse_summary
from enginehouse.bench.loadgen.system import SystemUnderTest
from enginehouse.errors import FailedPreconditionError, InternalError, InvalidArgumentError, UnavailableError


class Counting:
    """Answers after a moment; remembers how many samples came at once, and how many batches were in it."""

    def __init__(self, seconds: float = 0.001, fail_at: int = 0) -> None:
        self.seconds, self.fail_at = seconds, fail_at
        self.sizes: list[int] = []
        self.indices: set[int] = set()
        self.now = self.most = 0

    async def infer(self, indices: Sequence[int]) -> None:
        self.sizes.append(len(indices))
        self.indices.update(indices)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        if len(self.sizes) == self.fail_at:
            raise UnavailableError("the worker died")


@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_scenario_runs_and_keeps_its_logs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    target = Counting()
    scenario = Scenario(name, seconds=0.2, target_qps=200 if name in ("server", "offline") else None)
    ran = await run_scenario(scenario, target, tmp_path / name, samples=16, max_batch=8, in_flight=2)
    assert ran.samples == sum(target.sizes) > 0 and ran.batches == len(target.sizes)
    assert (tmp_path / name / SUMMARY).is_file() and (tmp_path / name / DETAIL).is_file()
    assert target.most <= 2 and max(target.sizes) <= 8 and target.indices <= set(range(16))
    if name == "single_stream":
        assert set(target.sizes) == {1} and ran.summary.metric["latency_ms"] >= 1
    if name == "multi_stream":
        assert set(target.sizes) == {8}
    if name == "offline":
        assert target.sizes[0] == 8 and ran.summary.metric["inferences_per_second"] > 0


async def test_a_target_that_fails_voids_the_run_and_ends_it(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    target = Counting(fail_at=3)
    scenario = Scenario("offline", seconds=0.2, target_qps=5000)
    with pytest.raises(UnavailableError, match="the worker died"):
        await run_scenario(scenario, target, tmp_path, samples=16, max_batch=4, in_flight=1)
    assert len(target.sizes) == 3, "what was left is not run"


async def test_a_run_that_is_cancelled_leaves_loadgen_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    target = Counting()
    scenario = Scenario("single_stream", seconds=1.0)
    running = asyncio.ensure_future(run_scenario(scenario, target, tmp_path, samples=4, max_batch=1, in_flight=1))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.05)
    answered = len(target.sizes)
    assert answered > 0
    while any(thread.name == THREAD for thread in threading.enumerate()):
        await asyncio.sleep(0.02)
    assert len(target.sizes) == answered, "the rest is answered without being run"


async def test_samples_wait_for_a_free_place_and_then_go_together() -> None:
    target, done = Counting(0.01), list[int]()
    system = SystemUnderTest(asyncio.get_running_loop(), target, done.extend, max_batch=4, in_flight=1)

    def sample(number: int) -> Any:
        return type("Sample", (), {"id": 100 + number, "index": number})

    system.issue([sample(0)])
    await asyncio.sleep(0.002)
    for number in range(1, 8):
        system.issue([sample(number)])
    while len(done) < 8:
        await asyncio.sleep(0.005)
    assert target.sizes == [1, 4, 3] and sorted(done) == list(range(100, 108))


async def test_without_loadgen_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    with pytest.raises(FailedPreconditionError, match=r"enginehouse\[loadgen\]"):
        await run_scenario(Scenario("offline"), Counting(), tmp_path, samples=1, max_batch=1, in_flight=1)


def test_what_is_shorter_than_mlperf_asks_is_labelled() -> None:
    assert Scenario("offline", seconds=10).shortened and Scenario("offline", seconds=600, queries=100).shortened
    official = Scenario("server", seconds=600)
    assert not official.shortened and official.minimum_queries == OFFICIAL_QUERIES["server"]
    for wrong in ({"name": "batch"}, {"name": "offline", "seconds": 0}, {"name": "server", "target_qps": -1.0}):
        with pytest.raises(InvalidArgumentError):
            Scenario(**wrong)  # type: ignore[arg-type]


TEXT = """\
Scenario : Server
Completed samples per second    : 92.76
Result is : INVALID
  Early Stopping satisfied: NO
 * Processed 95 queries.
99.00 percentile latency (ns)   : 5955436
"""


def test_the_summary_is_read() -> None:
    summary = parse_summary(TEXT, "server")
    assert not summary.valid and summary.reasons == ("Processed 95 queries.",)
    assert summary.metric == {"inferences_per_second": 92.76} and summary.latency_ms == {"99.00": 5.955436}
    for text in ("", TEXT.replace("Completed", "Other"), TEXT.replace("Result is", "Was")):
        with pytest.raises(InternalError, match="summary has no"):
            parse_summary(text, "server")


def test_each_query_of_the_server_scenario_is_a_request_of_the_service() -> None:
    plan = Plan((), "service", batch=8, in_flight=2, device="cpu")
    assert plan_for(Scenario("server", target_qps=1), plan).batch == 1
    assert plan_for(Scenario("offline"), plan) == plan
    assert plan_for(Scenario("server", target_qps=1), replace(plan, target="worker")).batch == 8


def test_agreement_is_the_median_of_the_offline_runs() -> None:
    lines = [{"scenario": "offline", "ratio": ratio} for ratio in (0.99, 1.0, 1.01, 0.5, 1.0, 1.02)]
    assert agreement([*lines, {"scenario": "server"}]) == (1.0, (0.5, 1.02))
    assert agreement(lines[:2]) == (0.995, None) and agreement([{"scenario": "server"}]) is None
