from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench_fakes import lane, row

from enginehouse.bench.rows import NotRun, Row
from enginehouse.paper import load_paper
from enginehouse.report.claims import Judgement, Verdict, judge, near
from enginehouse.report.data import Results
from enginehouse.report.ratios import against_baseline
from enginehouse.report.values import beside, within_budget

PAPER = load_paper()


def results(*rows: Row, engines: Any = (), environments: Any = None, not_run: tuple[NotRun, ...] = ()) -> Results:
    return Results(rows, not_run, environments or {}, {}, (), (), tuple(engines))


def verdict(claim: str, found: Results) -> Judgement:
    return next(j for j in judge(PAPER, found) if j.claim.id == claim)


def mode(name: str, rate: float, batch: int = 1, model: str = "resnet_v1_50", **more: Any) -> Row:
    return row(lane(model, name, batch, device=more.pop("device", None), scope=more.pop("scope", "host")), rate, **more)


def test_nothing_measured_judges_nothing() -> None:
    judgements = judge(PAPER, results())
    assert [j.claim.id for j in judgements] == [f"C{n}" for n in range(1, 11)]
    assert all(j.verdict is Verdict.NOT_TESTED and j.why and j.measured is None for j in judgements)


def test_cpu_rows_judge_none_of_the_claims() -> None:
    found = results(mode("onnxruntime-cpu-int8", 100), mode("tensorflow-cpu-fp32", 20))
    assert {j.verdict for j in judge(PAPER, found)} == {Verdict.NOT_TESTED}


def test_why_a_mode_is_missing_is_said() -> None:
    entry = NotRun(lane(mode="tensorrt-int8"), "no NVIDIA GPU: NVML library not found", "t")
    why = verdict("C5", results(mode("tensorflow-cpu-fp32", 20), not_run=(entry,))).why
    assert "tensorrt-int8" in why and "NVML library not found" in why and "tensorflow" not in why


@pytest.mark.parametrize(
    ("claim", "numerator", "base", "claimed"),
    [
        ("C4", "tensorflow-gpu-fp32", "tensorflow-cpu-fp32", 12),
        ("C5", "tensorrt-int8", "tensorflow-cpu-fp32", 142),
        ("C6", "tensorrt-int8", "tensorflow-gpu-fp32", 11),
        ("C3", "tensorrt-int8", "tf-trt-int8", 2.7),
    ],
)
def test_ratios(claim: str, numerator: str, base: str, claimed: float) -> None:
    held = verdict(claim, results(mode(base, 10), mode(numerator, 10 * claimed * 1.1)))
    assert held.verdict is Verdict.HELD and held.measured == pytest.approx(claimed * 1.1)
    for factor in (0.5, 2):
        failed = verdict(claim, results(mode(base, 10), mode(numerator, 10 * claimed * factor)))
        assert failed.verdict is Verdict.NOT_HELD and f"{claimed:g}x" in failed.why


def test_a_ratio_needs_interleaved_rows_of_one_batch_and_scope() -> None:
    base, fast = mode("tensorflow-cpu-fp32", 10), mode("tensorflow-gpu-fp32", 120)
    for other in (
        replace(fast, round="another"),
        replace(fast, round=None),
        mode("tensorflow-gpu-fp32", 120, batch=2),
        mode("tensorflow-gpu-fp32", 120, scope="served"),
    ):
        assert verdict("C4", results(base, other)).verdict is Verdict.NOT_TESTED
    served = mode("tensorflow-cpu-fp32", 10, scope="served"), mode("tensorflow-gpu-fp32", 120, scope="served")
    assert verdict("C4", results(*served)).verdict is Verdict.NOT_TESTED


def test_native_must_have_the_lower_latency_too() -> None:
    slow = mode("tensorrt-int8", 27, latency=200.0)
    assert verdict("C3", results(mode("tf-trt-int8", 10, latency=100.0), slow)).verdict is Verdict.NOT_HELD


def test_the_six_models() -> None:
    rows = [mode("tf-trt-int8", 100 if model == "resnet_v1_50" else 50, model=model) for model in PAPER.models]
    assert verdict("C1", results(*rows)).verdict is Verdict.HELD
    missing = verdict("C1", results(*rows[:3], *rows[4:]))
    assert missing.verdict is Verdict.NOT_TESTED and "inception_v4" in missing.why
    rows[0] = mode("tf-trt-int8", 200, model=PAPER.models[0])
    assert verdict("C1", results(*rows)).verdict is Verdict.NOT_HELD


def test_gpus_of_one_server() -> None:
    first, same, other = (
        mode("tensorrt-int8", rate, device=f"gpu:{n}") for n, rate in ((0, 100.0), (1, 103.0), (1, 120.0))
    )
    assert verdict("C2", results(first)).verdict is Verdict.NOT_TESTED
    assert verdict("C2", results(first, same)).verdict is Verdict.HELD
    assert verdict("C2", results(first, other)).verdict is Verdict.NOT_HELD
    elsewhere = replace(other, environment="another machine")
    assert verdict("C2", results(first, elsewhere)).verdict is Verdict.NOT_TESTED


def test_two_training_frameworks() -> None:
    ours = mode("tensorrt-int8", 100)
    assert verdict("C7", results(ours)).verdict is Verdict.NOT_TESTED
    for rate, want in ((101.0, Verdict.HELD), (130.0, Verdict.NOT_HELD)):
        other = mode("tensorrt-int8", rate, model="resnet_v1_50-pytorch")
        assert verdict("C7", results(ours, other)).verdict is want


def test_two_generations_of_gpu() -> None:
    def gpu(product: str, capability: str) -> dict[str, Any]:
        return {"machine": {"gpus": {"devices": [{"index": 0, "product": product, "compute_capability": capability}]}}}

    environments = {"old": gpu("P4", "6.1"), "new": gpu("T4", "7.5")}
    old = mode("tensorrt-int8", 100, environment="old", round_id="a")
    new = mode("tensorrt-int8", 220, environment="new", round_id="b")
    found = verdict("C9", results(old, new, environments=environments))
    assert found.verdict is Verdict.HELD and found.measured == pytest.approx(2.2)
    assert verdict("C9", results(old, environments=environments)).verdict is Verdict.NOT_TESTED
    old, new = (mode("tf-trt-int8", r, environment=e, latency=m) for r, e, m in ((100, "old", 10), (180, "new", 9)))
    assert verdict("C8", results(old, new, environments=environments)).verdict is Verdict.NOT_HELD


def test_calibration_once() -> None:
    def engine(device: str, table: str) -> dict[str, str]:
        return {"model": "m", "mode": "tensorrt-int8", "device": device, "calibration_digest": table}

    assert verdict("C10", results(engines=[engine("gpu:0", "a")])).verdict is Verdict.NOT_TESTED
    assert verdict("C10", results(engines=[engine("gpu:0", "a"), engine("gpu:1", "a")])).verdict is Verdict.HELD
    assert verdict("C10", results(engines=[engine("gpu:0", "a"), engine("gpu:1", "b")])).verdict is Verdict.NOT_HELD


def test_near() -> None:
    assert near(10, 7.9, 8.1) and near(10, 12.4, 13) and not near(10, 6, 7.9) and not near(10, 12.6, 13)


def test_stated_values_take_the_row_they_belong_to() -> None:
    rows = [mode("tensorrt-int8", 100 * batch**0.5, batch) for batch in (1, 4, 16, 64)]
    found = {b.value.id: b for b in beside(PAPER, results(*rows))}
    batches = {key: b.ours.lane.batch if b.ours else None for key, b in found.items()}
    assert batches == {"V1": None, "V2": 64, "V3": 1, "V4": 16, "V5": None, "V6": None, "V7": 64}
    assert "tf-trt-int8" in found["V1"].why


def test_budget() -> None:
    rows = [mode("onnxruntime-cpu-fp32", rate, batch) for batch, rate in ((1, 500.0), (2, 600.0), (8, 700.0))]
    best, none = within_budget(rows, 7.0, "mean")[0], within_budget(rows, 1.0, "mean")[0]
    assert best.row is not None and best.row.lane.batch == 2
    assert none.row is None and none.lowest_latency_ms == pytest.approx(2)


def test_the_baseline_is_the_same_mode_in_every_round() -> None:
    rows = [mode("onnxruntime-cpu-fp32", 10, 1), mode("onnxruntime-cpu-int8", 8, 1)]
    rows += [mode("onnxruntime-cpu-fp32", 11, 2), mode("onnxruntime-cpu-int8", 30, 2)]
    assert {ratio.base.lane.mode for ratio in against_baseline(rows)} == {"onnxruntime-cpu-fp32"}
