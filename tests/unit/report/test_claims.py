from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench_fakes import lane, row

from enginehouse.bench.rows import NotRun, Row
from enginehouse.paper import load_paper
from enginehouse.report.claims import Judgement, Verdict, implied_batch, judge, near
from enginehouse.report.data import Results
from enginehouse.report.ratios import Ratio, against_baseline
from enginehouse.report.values import beside

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
    assert all(j.verdict is Verdict.NOT_TESTABLE and j.why and j.measured is None for j in judgements)


def test_cpu_rows_judge_none_of_the_claims() -> None:
    found = results(mode("onnxruntime-cpu-int8", 100), mode("tensorflow-cpu-fp32", 20))
    assert {j.verdict for j in judge(PAPER, found)} == {Verdict.NOT_TESTABLE}


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
    assert held.verdict is Verdict.CONFIRMED and held.measured == pytest.approx(claimed * 1.1)
    for factor in (0.5, 2):
        failed = verdict(claim, results(mode(base, 10), mode(numerator, 10 * claimed * factor)))
        assert failed.verdict is Verdict.REFUTED and f"{claimed:g}x" in failed.why


def test_a_ratio_is_of_one_batch_and_scope_and_says_when_it_was_not_measured_in_turns() -> None:
    base, fast = mode("tensorflow-cpu-fp32", 10), mode("tensorflow-gpu-fp32", 120)
    for other in (mode("tensorflow-gpu-fp32", 120, batch=2), mode("tensorflow-gpu-fp32", 120, scope="served")):
        assert verdict("C4", results(base, other)).verdict is Verdict.NOT_TESTABLE
    served = mode("tensorflow-cpu-fp32", 10, scope="served"), mode("tensorflow-gpu-fp32", 120, scope="served")
    assert verdict("C4", results(*served)).verdict is Verdict.NOT_TESTABLE
    assert "in turns" not in verdict("C4", results(base, fast)).why
    for other in (replace(fast, round="another"), replace(fast, round=None)):
        assert "measured apart, not in turns" in verdict("C4", results(base, other)).why


def test_native_must_have_the_lower_latency_too() -> None:
    slow = mode("tensorrt-int8", 27, latency=200.0)
    assert verdict("C3", results(mode("tf-trt-int8", 10, latency=100.0), slow)).verdict is Verdict.REFUTED


def test_the_six_models() -> None:
    rows = [mode("tf-trt-int8", 100 if model == "resnet_v1_50" else 50, model=model) for model in PAPER.models]
    assert verdict("C1", results(*rows)).verdict is Verdict.CONFIRMED
    missing = verdict("C1", results(*rows[:3], *rows[4:]))
    assert missing.verdict is Verdict.NOT_TESTABLE and "inception_v4" in missing.why
    rows[0] = mode("tf-trt-int8", 200, model=PAPER.models[0])
    assert verdict("C1", results(*rows)).verdict is Verdict.REFUTED


def test_gpus_of_one_server() -> None:
    first, same, other = (
        mode("tensorrt-int8", rate, device=f"gpu:{n}") for n, rate in ((0, 100.0), (1, 103.0), (1, 120.0))
    )
    assert verdict("C2", results(first)).verdict is Verdict.NOT_TESTABLE
    assert verdict("C2", results(first, same)).verdict is Verdict.CONFIRMED
    assert verdict("C2", results(first, other)).verdict is Verdict.REFUTED
    elsewhere = replace(other, environment="another machine")
    assert verdict("C2", results(first, elsewhere)).verdict is Verdict.NOT_TESTABLE


def test_two_training_frameworks() -> None:
    ours = mode("tensorrt-int8", 100)
    assert verdict("C7", results(ours)).verdict is Verdict.NOT_TESTABLE
    for rate, want in ((101.0, Verdict.CONFIRMED), (130.0, Verdict.REFUTED)):
        other = mode("tensorrt-int8", rate, model="resnet_v1_50-pytorch")
        assert verdict("C7", results(ours, other)).verdict is want


def test_two_generations_of_gpu() -> None:
    def gpu(product: str, capability: str) -> dict[str, Any]:
        return {"machine": {"gpus": {"devices": [{"index": 0, "product": product, "compute_capability": capability}]}}}

    def server(environment: dict[str, Any], name: str, rate: float, **more: Any) -> Results:
        return results(mode(name, rate, environment="e", **more), environments={"e": environment})

    def judged(claim: str, new: Results, old: Results) -> Judgement:
        return next(j for j in judge(PAPER, new, {"old": old}) if j.claim.id == claim)

    old, new = gpu("P4", "6.1"), gpu("T4", "7.5")
    found = judged("C9", server(new, "tensorrt-int8", 220), server(old, "tensorrt-int8", 100))
    assert found.verdict is Verdict.CONFIRMED and found.measured == pytest.approx(2.2)
    assert judged("C9", server(old, "tensorrt-int8", 100), server(new, "tensorrt-int8", 220)) == found
    assert verdict("C9", server(old, "tensorrt-int8", 100)).verdict is Verdict.NOT_TESTABLE
    same = judged("C9", server(new, "tensorrt-int8", 220), server(new, "tensorrt-int8", 100))
    assert same.verdict is Verdict.NOT_TESTABLE, "one generation"
    slow = judged("C8", server(new, "tf-trt-int8", 180, latency=9), server(old, "tf-trt-int8", 100, latency=10))
    assert slow.verdict is Verdict.REFUTED


def test_calibration_once() -> None:
    def engine(device: str, table: str) -> dict[str, str]:
        return {"model": "m", "mode": "tensorrt-int8", "device": device, "calibration_digest": table}

    assert verdict("C10", results(engines=[engine("gpu:0", "a")])).verdict is Verdict.NOT_TESTABLE
    assert verdict("C10", results(engines=[engine("gpu:0", "a"), engine("gpu:1", "a")])).verdict is Verdict.CONFIRMED
    assert verdict("C10", results(engines=[engine("gpu:0", "a"), engine("gpu:1", "b")])).verdict is Verdict.REFUTED


def test_near() -> None:
    assert near(10, 7.9, 8.1) and near(10, 12.4, 13) and not near(10, 6, 7.9) and not near(10, 12.6, 13)


def test_stated_values_take_the_row_they_belong_to() -> None:
    rows = [mode("tensorrt-int8", 100 * batch**0.5, batch) for batch in (1, 4, 16, 64)]
    found = {b.value.id: b for b in beside(PAPER, results(*rows))}
    batches = {key: b.ours.lane.batch if b.ours else None for key, b in found.items()}
    assert batches == {"V1": None, "V2": 64, "V3": 1, "V4": 16, "V5": None, "V6": None, "V7": 64}
    assert "tf-trt-int8" in found["V1"].why
    rows += [mode("tensorrt-int8", 200, 8), mode("tensorrt-int8", 9999, 8, device="gpu:all")]
    implied = next(b for b in beside(PAPER, results(*rows)) if b.value.id == "V7").ours
    assert implied is not None and (implied.lane.batch, implied.lane.device) == (8, "gpu:0")


def test_the_baseline_is_the_same_mode_in_every_round() -> None:
    rows = [mode("onnxruntime-cpu-fp32", 10, 1), mode("onnxruntime-cpu-int8", 8, 1)]
    rows += [mode("onnxruntime-cpu-fp32", 11, 2), mode("onnxruntime-cpu-int8", 30, 2)]
    assert {ratio.base.lane.mode for ratio in against_baseline(rows)} == {"onnxruntime-cpu-fp32"}


def test_the_batch_that_the_papers_values_imply() -> None:
    # 273 images/s at 30 ms, 22 at 382 ms and 3127 at 2.6 ms are each eight images in flight.
    assert implied_batch(PAPER, ("tensorrt-int8", "tensorflow-gpu-fp32", "tensorflow-cpu-fp32")) == 8
    assert implied_batch(PAPER, ("tf-trt-int8",)) is None, "the paper states no latency of it but a bound"
    rates = {"tensorflow-cpu-fp32": 10, "tensorflow-gpu-fp32": 120}
    rows = [mode(name, rate * batch**0.1, batch) for name, rate in rates.items() for batch in (1, 8, 32)]
    assert "at batch 8, the batch that" in verdict("C4", results(*rows)).why
    without = [row for row in rows if row.lane.batch != 8]
    assert "at batch 32, where tensorflow-gpu-fp32 is fastest" in verdict("C4", results(*without)).why


def test_a_refuted_factor_may_leave_the_order() -> None:
    found = verdict("C5", results(mode("tensorflow-cpu-fp32", 10), mode("tensorrt-int8", 30000)))
    assert found.verdict is Verdict.REFUTED and "the order holds" in found.why
    assert found.of_claimed == pytest.approx(3000 / 142)


def test_relative_errors_of_a_ratio_add_as_squares() -> None:
    one, other = mode("onnxruntime-cpu-int8", 200, confidence=0.95), mode("onnxruntime-cpu-fp32", 100, confidence=0.95)
    ratio = Ratio(one, other)  # each within 1 %
    assert (ratio.value, ratio.confidence) == (2, 0.95)
    assert ratio.high / ratio.value == pytest.approx(1 + 0.01 * 2**0.5, rel=1e-3)
    widest = Ratio(replace(one, confidence=None), other)
    assert widest.confidence is None and (widest.low, widest.high) == pytest.approx((198 / 101, 202 / 99))


def test_all_gpus_at_once_are_no_gpu_to_compare_with_one() -> None:
    one, everything = mode("tensorrt-int8", 100, device="gpu:0"), mode("tensorrt-int8", 800, device="gpu:all")
    assert verdict("C2", results(one, everything)).verdict is Verdict.NOT_TESTABLE
