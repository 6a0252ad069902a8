"""The rules of the claims that are more than one ratio of two modes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from enginehouse.bench.plan import ALL_GPUS
from enginehouse.bench.rows import Row
from enginehouse.paper.facts import Claim, Paper
from enginehouse.report.claims import (
    RATIO_TOLERANCE,
    RESNET,
    SAME_TOLERANCE,
    SCOPES,
    Judgement,
    Rule,
    Verdict,
    by_batch,
    held,
    missing,
    near,
    ratio_of,
)
from enginehouse.report.data import Results
from enginehouse.report.ratios import Ratio


def rules(others: Mapping[str, Results]) -> Mapping[str, Rule]:
    """The rule of each claim by its id; `others` are results of other servers by name."""
    return {
        "C1": _fastest_of_six,
        "C2": _equal_gpus,
        "C3": ratio_of("tensorrt-int8", "tf-trt-int8", lower_latency=True),
        "C4": ratio_of("tensorflow-gpu-fp32", "tensorflow-cpu-fp32"),
        "C5": ratio_of("tensorrt-int8", "tensorflow-cpu-fp32"),
        "C6": ratio_of("tensorrt-int8", "tensorflow-gpu-fp32"),
        "C7": _two_frameworks,
        "C8": _generations("tf-trt-int8", others, half_latency=True),
        "C9": _generations("tensorrt-int8", others),
        "C10": _calibrated_once,
    }


def _fastest_of_six(claim: Claim, paper: Paper, results: Results) -> Judgement:
    mode = "tf-trt-int8"
    found = by_batch(results.rows, mode, lambda row: row.lane.model)
    complete = {batch: rows for batch, rows in found.items() if set(paper.models) <= set(rows)}
    if not complete:
        absent = [model for model in paper.models if not any(model in rows for rows in found.values())]
        if absent == list(paper.models):
            return missing(claim, results, (mode,))
        return Judgement(
            claim, Verdict.NOT_TESTABLE, f"no batch has {mode} rows of all six models; none of {', '.join(absent)}"
        )
    losses, leads = [], []
    for batch, rows in complete.items():
        six = [rows[model] for model in paper.models]
        quickest = min(six, key=lambda row: row.latency_ms.mean).lane.model
        rival = max((row for row in six if row.lane.model != RESNET), key=lambda row: row.inferences_per_second)
        lead = Ratio(rows[RESNET], rival)
        leads.append(lead)
        losses += [f"highest throughput at batch {batch}: {rival.lane.model}"] if lead.value < 1 else []
        losses += [f"lowest latency at batch {batch}: {quickest}"] if quickest != RESNET else []
    least = min(leads, key=lambda lead: lead.value)
    why = f"ResNet-50 has {least.text} the throughput of the next, {least.base.lane.model}, where it leads least"
    why += f" (batch {least.row.lane.batch} of {', '.join(map(str, complete))})"
    return Judgement(claim, held(not losses), "; ".join([why, *losses]), least.value, (least.low, least.high))


def _equal_gpus(claim: Claim, paper: Paper, results: Results) -> Judgement:
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in results.rows:
        lane = row.lane
        if lane.device.startswith("gpu:") and lane.device != ALL_GPUS and lane.scope in SCOPES:
            key = (row.environment, lane.model, lane.mode, lane.scope, str(lane.batch))
            groups.setdefault(key, {})[lane.device] = row
    several = {key: rows for key, rows in groups.items() if len(rows) > 1}
    if not several:
        return Judgement(claim, Verdict.NOT_TESTABLE, "needs rows of the same mode on two GPUs of one server")
    rate = max((_spread(list(rows.values())) for rows in several.values()), key=lambda ratio: ratio.value)
    slowest = [(max(r.latency_ms.mean for r in rows.values()) / min(r.latency_ms.mean for r in rows.values()), key)
               for key, rows in several.items()]  # fmt: skip
    latency, where = max(slowest)
    gpus = len({device for rows in several.values() for device in rows})
    lane = rate.row.lane
    why = (
        f"{gpus} GPUs, {len(several)} points: largest ratio of throughputs {rate.text} ({lane.model} {lane.mode} batch "
    )
    why += f"{lane.batch}), of mean latencies {latency:.3g}x ({where[1]} {where[2]} batch {where[4]})"
    same = rate.low <= 1 + SAME_TOLERANCE and latency <= 1 + 2 * SAME_TOLERANCE
    return Judgement(claim, held(same), why, rate.value, (rate.low, rate.high))


def _spread(rows: Sequence[Row]) -> Ratio:
    return Ratio(
        max(rows, key=lambda row: row.inferences_per_second), min(rows, key=lambda row: row.inferences_per_second)
    )


def _two_frameworks(claim: Claim, paper: Paper, results: Results) -> Judgement:
    """The other framework's network is the model called "resnet_v1_50-{framework}"."""
    found: list[Ratio] = []
    for rows in by_batch(results.rows, "tensorrt-int8", lambda row: row.lane.model).values():
        found += [
            Ratio(rows[RESNET], row) for model, row in rows.items() if model.startswith(RESNET + "-") and RESNET in rows
        ]
    if not found:
        why = "needs tensorrt-int8 rows of ResNet-50 from two training frameworks: suite `frameworks`"
        return Judgement(claim, Verdict.NOT_TESTABLE, why)
    worst = max(found, key=lambda ratio: abs(ratio.value - 1))
    lane = worst.base.lane
    why = f"{worst.text} of {lane.model} at batch {lane.batch}, the largest difference of {len(found)} batches"
    return Judgement(
        claim, held(near(1, worst.low, worst.high, SAME_TOLERANCE)), why, worst.value, (worst.low, worst.high)
    )


def _generations(mode: str, others: Mapping[str, Results], half_latency: bool = False) -> Rule:
    def rule(claim: Claim, paper: Paper, results: Results) -> Judgement:
        by_gpu: dict[tuple[tuple[int, int], str], dict[int, Row]] = {}
        for run in (results, *others.values()):
            rows = [row for row in run.rows if row.lane.model == RESNET]
            for batch, found in by_batch(rows, mode, lambda row: row.lane.device).items():
                for row in found.values():
                    if (gpu := _gpu(run, row)) is not None:
                        by_gpu.setdefault(gpu, {}).setdefault(batch, row)
        known = sorted(by_gpu)
        if claim.ratio is None or not known or known[0][0] == known[-1][0]:
            why = f"needs {mode} rows of ResNet-50 from GPUs of two generations: `report --against` another server's"
            return Judgement(claim, Verdict.NOT_TESTABLE, why)
        older, newer = known[0], known[-1]
        both = [Ratio(row, by_gpu[older][batch]) for batch, row in by_gpu[newer].items() if batch in by_gpu[older]]
        if not both:
            return Judgement(claim, Verdict.NOT_TESTABLE, f"{older[1]} and {newer[1]} share no batch size under {mode}")
        best = max(both, key=lambda ratio: ratio.row.inferences_per_second)
        reached = near(claim.ratio, best.low, best.high)
        why = f"{newer[1]} is {best.text} {older[1]} at batch {best.row.lane.batch} (two runs, not interleaved)"
        if half_latency:
            latency = best.row.latency_ms.mean / best.base.latency_ms.mean
            reached = reached and latency <= 0.5 * (1 + RATIO_TOLERANCE)
            why += f"; {latency:.2f} of its mean latency"
        return Judgement(claim, held(reached), why, best.value, (best.low, best.high))

    return rule


def _gpu(results: Results, row: Row) -> tuple[tuple[int, int], str] | None:
    """Compute capability and product of the GPU a row ran on."""
    if not row.lane.device.startswith("gpu") or row.lane.device == ALL_GPUS:
        return None
    devices: Sequence[Mapping[str, object]] = results.machine(row).get("gpus", {}).get("devices", ())
    index = int(row.lane.device.partition(":")[2] or 0)
    for device in devices:
        major, _, minor = str(device.get("compute_capability", "")).partition(".")
        if device.get("index") == index and major.isdigit() and minor.isdigit():
            return (int(major), int(minor)), str(device.get("product"))
    return None


def _calibrated_once(claim: Claim, paper: Paper, results: Results) -> Judgement:
    """Engines of one model for several GPUs: was each made from the same calibration table?"""
    tables: dict[tuple[str, str], dict[str, str]] = {}
    for engine in results.engines:
        device, table = str(engine.get("device", "")), engine.get("calibration_digest")
        if table and device.startswith("gpu:") and device != ALL_GPUS:
            key = (str(engine.get("model")), str(engine.get("mode")))
            tables.setdefault(key, {})[device] = str(table)
    several = {key: found for key, found in tables.items() if len(found) > 1}
    if not several:
        return Judgement(claim, Verdict.NOT_TESTABLE, "needs INT8 engines of one model on two GPUs")
    differing = [f"{model} {mode}" for (model, mode), found in several.items() if len(set(found.values())) > 1]
    if differing:
        return Judgement(claim, Verdict.REFUTED, f"calibrated again for another GPU: {', '.join(differing)}")
    pairs = [pair for found in several.values() for pair in combinations(found, 2)]
    why = f"one calibration table on all GPUs, for each of {len(several)} models and modes ({len(pairs)} pairs of GPUs)"
    seconds = results.seconds_of("calibrate")
    if seconds:
        took = f"{min(seconds):.0f} to {max(seconds):.0f} s" if len(seconds) > 1 else f"{seconds[0]:.0f} s"
        why += f"; a calibration took {took}, the paper's about an hour"
    return Judgement(claim, Verdict.CONFIRMED, why)
