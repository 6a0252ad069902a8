"""What does, what is better, how far the load rises, and which engines are good enough."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from typing import Any

import pytest
from simulated_service import level

from enginehouse.client.values import Device, Engine, ServedVersion, ServingConfig, TensorSpec, Verification
from enginehouse.client.values.serving import Batching
from enginehouse.tune.engines import candidates
from enginehouse.tune.goal import Goal, Trial
from enginehouse.tune.levels import go_on, rising
from enginehouse.tune.report import COLUMNS, Tuning, configuration, load_command, markdown, rows, table
from enginehouse.tune.run import Outcome
from enginehouse.tune.space import Point

POINT = Point("projects/default/engines/m-onnxruntime-int8-0", 8, 1.0, 2)
TENSORS = (TensorSpec("x", "FP32", (-1, 4)),)


def trial(*levels: Any, **fields: Any) -> Trial:
    return Trial(POINT, levels, **fields)


def engine(precision: str, day: int = 1, kind: str = "cpu", **measured: float) -> Engine:
    return Engine(
        name=f"projects/default/engines/m-onnxruntime-{precision}-{day}",
        key=f"key-{precision}-{day}",
        model="projects/default/models/m",
        model_digest="",
        precision=precision,
        backend="onnxruntime",
        backend_version="1",
        device=Device(kind, "Some device"),
        inputs=TENSORS,
        outputs=TENSORS,
        files=(),
        size_bytes=1,
        batched=True,
        max_batch_size=8,
        verification=Verification("data", 100, **measured) if measured else None,
        create_time=datetime(2026, 1, day, tzinfo=timezone.utc),
    )


def test_a_level_does_or_says_why_not() -> None:
    goal = Goal(p99_ms=15.0, min_throughput=100.0)
    assert goal.refusal(level(200, 15.0)) == ""
    assert goal.refusal(level(200, 15.1)) == "p99 15.1 ms is above 15 ms"
    assert goal.refusal(level(99, 5.0)) == "99 inferences/s are below 100"
    assert goal.refusal(level(200, 5.0, failed=1, error="full")) == "1 of 101 requests failed: full"
    assert goal.refusal(level(0, 0.0, failed=3, error="gone")) == "no request was answered: gone"
    assert Goal().refusal(level(90, 5.0, rate=100.0)) == "90 inferences/s of 100 offered"
    assert Goal().refusal(level(96, 5.0, rate=100.0)) == ""
    assert Goal().refusal(level(190, 5.0, rate=100.0, rows=2)) == ""


def test_the_best_level_is_the_fastest_that_does() -> None:
    goal = Goal(p99_ms=10.0)
    measured = trial(level(100, 2.0, 1), level(300, 9.0, 4), level(500, 11.0, 8))
    best = goal.best_level(measured)
    assert best is not None and best.concurrency == 4 and goal.verdict(measured) == ""
    late = trial(level(100, 12.0, 1), level(300, 30.0, 4))
    nearest = goal.best_level(late)
    assert nearest is not None and nearest.concurrency == 1 and not goal.feasible(late)
    assert goal.best_level(trial()) is None and goal.verdict(trial(error="did not load")) == "did not load"


def test_what_does_is_better_than_what_does_not() -> None:
    goal, latency = Goal(p99_ms=10.0), Goal("latency", p99_ms=10.0)
    order = [trial(error="broken"), trial(level(9000, 40.0)), trial(level(9000, 20.0)), trial(level(100, 5.0))]
    for one, other in zip(order[1:], order, strict=False):
        assert goal.better(one, other) and not goal.better(other, one)
    assert goal.better(trial(level(104, 5.0)), order[-1], 0.03) and not goal.better(
        trial(level(102, 5.0)), order[-1], 0.03
    )
    assert latency.better(trial(level(50, 4.0)), order[-1], 0.03)
    assert not latency.better(trial(level(500, 6.0)), order[-1])


def test_the_load_rises_while_that_brings_something() -> None:
    assert rising(1, 64) == (1, 2, 4, 8, 16, 32, 64) and rising(3, 10) == (3, 6, 10) and rising(5, 5) == (5,)
    goal = Goal(p99_ms=10.0)
    flat = [level(100, 1.0), level(200, 2.0), level(204, 3.0), level(203, 4.0)]
    assert [go_on(goal, flat[:count]) for count in range(5)] == [True, True, True, True, False]
    assert not go_on(goal, [level(100, 10.5)]), "more load does not make it faster"
    assert not go_on(goal, [level(100, 1.0, failed=1)])
    assert not go_on(goal, [level(0, 0.0)])


def test_engines_are_the_newest_of_each_kind_and_the_accurate_first() -> None:
    every = [
        engine("fp32", 1, top1_agreement=1.0),
        engine("fp32", 2, top1_agreement=0.999),
        engine("fp16", 1, top1=0.76, reference_top1=0.80, top1_agreement=0.99),
        engine("int8", 1, sqnr_db=20.0),
        engine("bf16", 1, "gpu", top1_agreement=0.97),  # type: ignore[arg-type]
    ]
    found = candidates(every, min_accuracy=0.96)
    assert [(c.engine.precision, c.engine.key[-1], c.refusal) for c in found] == [
        ("fp32", "2", ""),
        ("bf16", "1", ""),
        ("fp16", "1", "top-1 relative to FP32 0.95 is below 0.96"),
        ("int8", "1", "its accuracy was not measured"),
    ]
    assert all(not c.refusal for c in candidates(every)), "without a bar everything is accurate enough"
    assert {c.engine.precision for c in candidates(every, device="cpu", precisions=("bf16", "int8"))} == {"int8"}
    assert candidates(every, backends=("tensorrt",)) == []


def test_engines_are_told_apart_by_kind() -> None:
    assert len(candidates([engine("fp32", 1), engine("fp32", 2, "gpu")])) == 2


@pytest.fixture
def tuning() -> Tuning:
    found = candidates(
        [engine("int8", 1, top1_agreement=0.995), engine("fp16", 1, top1_agreement=0.5)], min_accuracy=0.9
    )
    point = Point(found[0].engine.name, 8, 1.0, 2)
    slow = Trial(Point(found[0].engine.name, 1), (level(100, 1.0, 1), level(90, 30.0, 2)))
    best = Trial(point, (level(400, 9.0, 8, generator_cpu=0.95),), confirmation=True)
    broken = Trial(Point(found[0].engine.name, 8, 0.0, 4), error="out of memory | of the device")
    former = ServingConfig(
        name="projects/default/servingConfigs/s",
        versions=(ServedVersion(3, "projects/default/engines/old"),),
        options={"a": "b"},
        etag="x",
    )
    outcome = Outcome(best, True, (slow, broken, best), True, 12.0)
    return Tuning(
        "s", Goal(p99_ms=10.0), found, outcome, Batching(8, 0.001), former, "enginehouse tune m", "2026-01-01T00:00:00Z"
    )


def test_a_report_says_what_was_found_and_why(tuning: Tuning) -> None:
    assert (
        load_command(tuning) == "enginehouse load s m-onnxruntime-int8-1 --instances 2 --max-batch 8 --max-delay-ms 1"
    )
    found = configuration(tuning)
    assert found is not None and found["versions"] == [{"version": "4", "engine": tuning.best.engine}]  # type: ignore[union-attr]
    assert found["instances"] == 2 and found["options"] == {"a": "b"} and "etag" not in found
    assert found["batching"]["maxQueueDelay"] == "0.001s"
    lines = table(tuning)
    assert all(len(line) == len(COLUMNS) for line in lines)
    assert lines[0][-1] == "best; second look; the load generator was the limit"
    assert [line[-1] for line in lines[1:]] == [
        "does",
        "rejected: out of memory | of the device",
        "refused: top-1 agreement with FP32 0.5 is below 0.9",
    ]
    text = markdown(tuning)
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1, "one table"
    written = rows(tuning)
    assert [row["chosen"] for row in written] == [False, False, False, True]
    assert [row["verdict"] for row in written] == ["does", "p99 30 ms is above 10 ms", broken_error(tuning), "does"]
    assert written[-1]["latency_ms"]["p99"] == 9.0 and "offered_per_second" not in written[-1]
    assert "latency_ms" not in written[2]


def test_what_did_once_only_is_said_so(tuning: Tuning) -> None:
    best = tuning.outcome.best
    assert best is not None
    lucky = Point(best.point.engine, 4, 0.0, 1)
    once = Trial(lucky, (level(900, 5.0),))
    again = Trial(lucky, (level(900, 50.0),), confirmation=True)
    outcome = dataclasses.replace(tuning.outcome, trials=(once, again, best))
    verdicts = [line[-1] for line in table(dataclasses.replace(tuning, outcome=outcome))]
    assert verdicts[0].startswith("best")
    assert verdicts[1:3] == ["did, but not on the second look", "rejected: p99 50 ms is above 10 ms; second look"]


def broken_error(tuning: Tuning) -> str:
    return tuning.outcome.trials[1].error
