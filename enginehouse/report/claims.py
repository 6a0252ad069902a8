"""Judging the paper's claims by a run's rows. Pure.

A claim is judged only from rows that can judge it; otherwise it is "not tested here", with what was missing. A
claimed ratio
holds when the measured one, with the interval of its windows, reaches within `RATIO_TOLERANCE` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from enginehouse.bench.rows import Row
from enginehouse.paper.facts import Claim, Paper
from enginehouse.report.data import Results
from enginehouse.report.ratios import Ratio, pairs

RATIO_TOLERANCE = 0.25
SAME_TOLERANCE = 0.05
# The paper times inference from host memory; engine-only rows come second, and served rows measure something else.
SCOPES = ("host", "engine")
RESNET = "resnet_v1_50"


class Verdict(Enum):
    HELD = "held"
    NOT_HELD = "did not hold"
    NOT_TESTED = "not tested here"


@dataclass(frozen=True)
class Judgement:
    """A claim's verdict and why. `measured` is our ratio where the claim is one, with its interval."""

    claim: Claim
    verdict: Verdict
    why: str
    measured: float | None = None
    interval: tuple[float, float] | None = None


def judge(paper: Paper, results: Results) -> tuple[Judgement, ...]:
    """A judgement of every claim of the paper, in its order."""
    return tuple(_JUDGES.get(claim.id, _unknown)(claim, paper, results) for claim in paper.claims)


def _unknown(claim: Claim, paper: Paper, results: Results) -> Judgement:
    return Judgement(claim, Verdict.NOT_TESTED, "no rule says which rows would judge it")


def _missing(claim: Claim, results: Results, modes: Sequence[str], model: str = RESNET) -> Judgement:
    """Not tested: says which modes have no rows, and why when the run says."""
    have = {row.lane.mode for row in results.rows if row.lane.model == model and row.lane.scope in SCOPES}
    absent = [mode for mode in modes if mode not in have]
    if not absent:
        return Judgement(claim, Verdict.NOT_TESTED, f"no rows of {' and '.join(modes)} were measured interleaved")
    reasons = []
    for mode in absent:
        reason = next((entry.reason for entry in results.not_run if entry.lane.mode == mode), None)
        reasons.append(f"{mode} on {model} was not run" + (f" ({reason})" if reason else ""))
    return Judgement(claim, Verdict.NOT_TESTED, "; ".join(reasons))


def _ratio_of(mode: str, base: str, lower_latency: bool = False) -> Callable[[Claim, Paper, Results], Judgement]:
    def rule(claim: Claim, paper: Paper, results: Results) -> Judgement:
        found = pairs(results.rows, RESNET, mode, base, SCOPES)
        if not found or claim.ratio is None:
            return _missing(claim, results, (mode, base))
        best = max(found, key=lambda ratio: ratio.row.inferences_per_second)
        held = near(claim.ratio, best.low, best.high)
        why = f"{best.value:.2f}x at batch {best.row.lane.batch}, where {mode} is fastest ({_over(found)})"
        if lower_latency:
            ours, theirs = best.row.latency_ms.mean, best.base.latency_ms.mean
            held = held and ours < theirs
            why += f"; mean latency {ours:.3g} ms against {theirs:.3g} ms"
        verdict = Verdict.HELD if held else Verdict.NOT_HELD
        if not held:
            why += f"; the claim is {claim.ratio:g}x, give or take {RATIO_TOLERANCE:.0%}"
        return Judgement(claim, verdict, why, best.value, (best.low, best.high))

    return rule


def near(claimed: float, low: float, high: float) -> bool:
    """Whether the interval reaches within `RATIO_TOLERANCE` of the claimed ratio."""
    return low <= claimed * (1 + RATIO_TOLERANCE) and high >= claimed / (1 + RATIO_TOLERANCE)


def _over(found: Sequence[Ratio]) -> str:
    values = [ratio.value for ratio in found]
    batches = ", ".join(str(ratio.row.lane.batch) for ratio in found)
    return f"{min(values):.2f}x to {max(values):.2f}x over batches {batches}"


def _by_batch(rows: Sequence[Row], mode: str, key: Callable[[Row], str]) -> dict[int, dict[str, Row]]:
    """Rows of a mode by batch, then by `key`; the first of equal keys counts. In the first scope that has any."""
    for scope in SCOPES:
        found: dict[int, dict[str, Row]] = {}
        for row in rows:
            if (row.lane.mode, row.lane.scope) == (mode, scope):
                found.setdefault(row.lane.batch, {}).setdefault(key(row), row)
        if found:
            return dict(sorted(found.items()))
    return {}


def _c1(claim: Claim, paper: Paper, results: Results) -> Judgement:
    mode = "tf-trt-int8"
    by_batch = _by_batch(results.rows, mode, lambda row: row.lane.model)
    complete = {batch: rows for batch, rows in by_batch.items() if set(paper.models) <= set(rows)}
    if not complete:
        absent = [model for model in paper.models if not any(model in rows for rows in by_batch.values())]
        if absent == list(paper.models):
            return _missing(claim, results, (mode,))
        return Judgement(
            claim, Verdict.NOT_TESTED, f"no batch has {mode} rows of all six models; none of {', '.join(absent)}"
        )
    losses = []
    for batch, rows in complete.items():
        six = [rows[model] for model in paper.models]
        fastest = max(six, key=lambda row: row.inferences_per_second).lane.model
        quickest = min(six, key=lambda row: row.latency_ms.mean).lane.model
        losses += [f"{what} at batch {batch}: {model}" for what, model in
                   (("highest throughput", fastest), ("lowest latency", quickest)) if model != RESNET]  # fmt: skip
    batches = ", ".join(map(str, complete))
    if losses:
        return Judgement(claim, Verdict.NOT_HELD, "; ".join(losses))
    return Judgement(claim, Verdict.HELD, f"highest throughput and lowest mean latency of the six at batches {batches}")


def _c2(claim: Claim, paper: Paper, results: Results) -> Judgement:
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in results.rows:
        lane = row.lane
        if lane.device.startswith("gpu:") and lane.scope in SCOPES:
            key = (row.environment, lane.model, lane.mode, lane.scope, str(lane.batch))
            groups.setdefault(key, {})[lane.device] = row
    several = {key: rows for key, rows in groups.items() if len(rows) > 1}
    if not several:
        return Judgement(claim, Verdict.NOT_TESTED, "needs rows of the same mode on two GPUs of one server")
    worst, where = 0.0, ""
    for (_, model, mode, _, batch), rows in several.items():
        for values in ([r.inferences_per_second for r in rows.values()], [r.latency_ms.mean for r in rows.values()]):
            spread = max(values) / min(values) - 1
            if spread >= worst:
                worst, where = spread, f"{model} {mode} batch {batch}"
    gpus = len({device for rows in several.values() for device in rows})
    why = f"largest difference between {gpus} GPUs in throughput or mean latency: {worst:.1%} ({where})"
    return Judgement(claim, Verdict.HELD if worst <= SAME_TOLERANCE else Verdict.NOT_HELD, why)


def _c7(claim: Claim, paper: Paper, results: Results) -> Judgement:
    """The other framework's network is the model called "resnet_v1_50-{framework}"."""
    by_batch = _by_batch(results.rows, "tensorrt-int8", lambda row: row.lane.model)
    found: list[tuple[int, float, str]] = []
    for batch, rows in by_batch.items():
        for model, row in rows.items():
            if model.startswith(RESNET + "-") and RESNET in rows:
                ratio = rows[RESNET].inferences_per_second / row.inferences_per_second
                found.append((batch, ratio, model))
    if not found:
        return Judgement(
            claim,
            Verdict.NOT_TESTED,
            "needs tensorrt-int8 rows of ResNet-50 from two training frameworks, interleaved or not",
        )
    batch, ratio, model = max(found, key=lambda item: abs(item[1] - 1))
    verdict = Verdict.HELD if abs(ratio - 1) <= SAME_TOLERANCE else Verdict.NOT_HELD
    return Judgement(claim, verdict, f"{ratio:.2f}x of {model} at batch {batch}, the largest difference", ratio)


def _generations(mode: str, half_latency: bool) -> Callable[[Claim, Paper, Results], Judgement]:
    def rule(claim: Claim, paper: Paper, results: Results) -> Judgement:
        rows = [row for row in results.rows if row.lane.model == RESNET]
        capability = {product: cc for row in rows if (known := _gpu(results, row)) for product, cc in [known]}
        versions = sorted(capability.items(), key=lambda item: item[1])
        by_batch = _by_batch(rows, mode, lambda row: (_gpu(results, row) or ("", (0, 0)))[0])
        if len({cc for _, cc in versions}) < 2 or claim.ratio is None:
            return Judgement(claim, Verdict.NOT_TESTED, f"needs {mode} rows of ResNet-50 from GPUs of two generations")
        older, newer = versions[0][0], versions[-1][0]
        both = {batch: found for batch, found in by_batch.items() if older in found and newer in found}
        if not both:
            return Judgement(claim, Verdict.NOT_TESTED, f"{older} and {newer} share no batch size under {mode}")
        batch, found = max(both.items(), key=lambda item: item[1][newer].inferences_per_second)
        new, old = found[newer], found[older]
        ratio = Ratio(new, old)
        held = near(claim.ratio, ratio.low, ratio.high)
        why = f"{newer} is {ratio.value:.2f}x {older} at batch {batch} (two runs, not interleaved)"
        if half_latency:
            latency = new.latency_ms.mean / old.latency_ms.mean
            held = held and latency <= 0.5 * (1 + RATIO_TOLERANCE)
            why += f"; {latency:.2f} of its mean latency"
        return Judgement(claim, Verdict.HELD if held else Verdict.NOT_HELD, why, ratio.value, (ratio.low, ratio.high))

    return rule


def _gpu(results: Results, row: Row) -> tuple[str, tuple[int, int]] | None:
    """Product and compute capability of the GPU a row ran on."""
    if not row.lane.device.startswith("gpu"):
        return None
    devices: Sequence[Mapping[str, object]] = results.machine(row).get("gpus", {}).get("devices", ())
    index = int(row.lane.device.partition(":")[2] or 0)
    for device in devices:
        major, _, minor = str(device.get("compute_capability", "")).partition(".")
        if device.get("index") == index and major.isdigit() and minor.isdigit():
            return str(device.get("product")), (int(major), int(minor))
    return None


def _c10(claim: Claim, paper: Paper, results: Results) -> Judgement:
    """Engines of one model for several GPUs: was each made from the same calibration table?"""
    tables: dict[tuple[str, str], dict[str, str]] = {}
    for engine in results.engines:
        device, table = str(engine.get("device", "")), engine.get("calibration_digest")
        if table and device.startswith("gpu"):
            key = (str(engine.get("model")), str(engine.get("mode")))
            tables.setdefault(key, {})[device] = str(table)
    several = {key: found for key, found in tables.items() if len(found) > 1}
    if not several:
        return Judgement(claim, Verdict.NOT_TESTED, "needs INT8 engines of one model on two GPUs")
    differing = [f"{model} {mode}" for (model, mode), found in several.items() if len(set(found.values())) > 1]
    if differing:
        return Judgement(claim, Verdict.NOT_HELD, f"calibrated again for another GPU: {', '.join(differing)}")
    return Judgement(
        claim, Verdict.HELD, f"one calibration table for all GPUs, for each of {len(several)} models and modes"
    )


_JUDGES: Mapping[str, Callable[[Claim, Paper, Results], Judgement]] = {
    "C1": _c1,
    "C2": _c2,
    "C3": _ratio_of("tensorrt-int8", "tf-trt-int8", lower_latency=True),
    "C4": _ratio_of("tensorflow-gpu-fp32", "tensorflow-cpu-fp32"),
    "C5": _ratio_of("tensorrt-int8", "tensorflow-cpu-fp32"),
    "C6": _ratio_of("tensorrt-int8", "tensorflow-gpu-fp32"),
    "C7": _c7,
    "C8": _generations("tf-trt-int8", half_latency=True),
    "C9": _generations("tensorrt-int8", half_latency=False),
    "C10": _c10,
}
