"""Judging the paper's claims by a run's rows. Pure.

A claim is judged only from rows that can judge it; otherwise it is "not testable here", with what was missing. A
claimed ratio is confirmed when the measured one, with its interval, reaches within `RATIO_TOLERANCE` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from enginehouse.bench.rows import Row
from enginehouse.paper.facts import Claim, Paper, StatedValue
from enginehouse.report.data import Results
from enginehouse.report.ratios import Ratio, pairs, same_problem

RATIO_TOLERANCE = 0.25
SAME_TOLERANCE = 0.05
# The paper times inference from host memory; engine-only rows come second, and served rows measure something else.
SCOPES = ("host", "engine")
RESNET = "resnet_v1_50"


class Verdict(Enum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Judgement:
    """A claim's verdict and why.

    Attributes:
        measured: our number, a ratio, where the claim is one or an ordering.
        interval: of `measured`.
    """

    claim: Claim
    verdict: Verdict
    why: str
    measured: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def of_claimed(self) -> float | None:
        """Our number over the paper's, where both are ratios."""
        return None if self.measured is None or self.claim.ratio is None else self.measured / self.claim.ratio


Rule = Callable[[Claim, Paper, Results], Judgement]


def held(condition: bool) -> Verdict:
    return Verdict.CONFIRMED if condition else Verdict.REFUTED


def near(claimed: float, low: float, high: float, tolerance: float = RATIO_TOLERANCE) -> bool:
    """Whether the interval reaches within `tolerance` of the claimed ratio."""
    return low <= claimed * (1 + tolerance) and high >= claimed / (1 + tolerance)


def missing(claim: Claim, results: Results, modes: Sequence[str], model: str = RESNET) -> Judgement:
    """Not testable: says which modes have no rows, and why when the run says."""
    have = {row.lane.mode for row in results.rows if row.lane.model == model and row.lane.scope in SCOPES}
    absent = [mode for mode in modes if mode not in have]
    if not absent:
        return Judgement(claim, Verdict.NOT_TESTABLE, f"{' and '.join(modes)} have no batch size in common")
    reasons = []
    for mode in absent:
        reason = next((entry.reason for entry in results.not_run if entry.lane.mode == mode), None)
        reasons.append(f"{mode} on {model} was not run" + (f" ({reason})" if reason else ""))
    return Judgement(claim, Verdict.NOT_TESTABLE, "; ".join(reasons))


def by_batch(rows: Sequence[Row], mode: str, key: Callable[[Row], str]) -> dict[int, dict[str, Row]]:
    """Rows of a mode by batch, then by `key`; the first of equal keys counts. In the first scope that has any."""
    for scope in SCOPES:
        found: dict[int, dict[str, Row]] = {}
        for row in rows:
            if (row.lane.mode, row.lane.scope) == (mode, scope):
                found.setdefault(row.lane.batch, {}).setdefault(key(row), row)
        if found:
            return dict(sorted(found.items()))
    return {}


def in_flight(value: StatedValue) -> int | None:
    """How many images were in flight, throughput times latency: the batch size of a value that does not state it. None
    where the paper does not state both."""
    latency = value.latency_ms or value.latency_ms_about
    if value.images_per_second is None or latency is None:
        return None
    return round(value.images_per_second * latency / 1e3)


def implied_batch(paper: Paper, modes: Sequence[str]) -> int | None:
    """The batch size at which the paper compared modes, where its values say. None when a mode has no value that
    implies one, or the values do not agree."""
    batches = set()
    for mode in modes:
        found = {in_flight(value) for value in paper.values if value.mode == mode} - {None}
        if not found:
            return None
        batches |= found
    return batches.pop() if len(batches) == 1 else None


def ratio_of(mode: str, base: str, *, lower_latency: bool = False) -> Rule:
    """A rule for "mode is so many times base on ResNet-50": at the batch that the paper's values imply, where they do
    and we measured it; else where the mode is fastest."""

    def rule(claim: Claim, paper: Paper, results: Results) -> Judgement:
        found = pairs(results.rows, RESNET, mode, base, SCOPES)
        apart = not found
        if apart:
            found = pairs(results.rows, RESNET, mode, base, SCOPES, fit=same_problem)
        if not found or claim.ratio is None:
            return missing(claim, results, (mode, base))
        implied = implied_batch(paper, (mode, base))
        chosen = next((ratio for ratio in found if ratio.row.lane.batch == implied), None)
        where = "the batch that the paper's throughput times latency implies"
        if chosen is None:
            chosen, where = max(found, key=lambda ratio: ratio.row.inferences_per_second), f"where {mode} is fastest"
        reached = near(claim.ratio, chosen.low, chosen.high)
        why = f"{chosen.text} at batch {chosen.row.lane.batch}, {where} ({_over(found)})"
        why += "; measured apart, not in turns" if apart else ""
        ordered = True
        if lower_latency:
            ours, theirs = chosen.row.latency_ms.mean, chosen.base.latency_ms.mean
            ordered = ours < theirs
            why += f"; mean latency {ours:.3g} ms against {theirs:.3g} ms"
        if not reached:
            why += f"; the claim is {claim.ratio:g}x, give or take {RATIO_TOLERANCE:.0%}"
            if chosen.low > 1 and ordered:
                why += f": the order holds, the factor does not ({chosen.value / claim.ratio:.2g} of the claimed)"
        return Judgement(claim, held(reached and ordered), why, chosen.value, (chosen.low, chosen.high))

    return rule


def _over(found: Sequence[Ratio]) -> str:
    values = [ratio.value for ratio in found]
    batches = ", ".join(str(ratio.row.lane.batch) for ratio in found)
    return f"{min(values):.3g}x to {max(values):.3g}x over batches {batches}"


def judge(paper: Paper, results: Results, others: Mapping[str, Results] | None = None) -> tuple[Judgement, ...]:
    """A judgement of every claim of the paper, in its order.

    Args:
        others: results of other servers by name, for the claims that compare servers.
    """
    from enginehouse.report.claim_rules import rules

    known = rules(others or {})
    return tuple(known.get(claim.id, _unknown)(claim, paper, results) for claim in paper.claims)


def _unknown(claim: Claim, paper: Paper, results: Results) -> Judgement:
    return Judgement(claim, Verdict.NOT_TESTABLE, "no rule says which rows would judge it")
