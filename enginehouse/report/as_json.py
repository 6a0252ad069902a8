"""The report for programs. What was not measured is absent."""

from __future__ import annotations

import dataclasses
from typing import Any

from enginehouse.bench.rows import Row, present
from enginehouse.report.claims import Judgement
from enginehouse.report.page import Page
from enginehouse.report.ratios import Ratio, against_baseline
from enginehouse.report.tables import SCOPES, BudgetLine


def to_json(page: Page) -> dict[str, Any]:
    """Everything the page says."""
    results = page.results
    return {
        "run": results.run,
        "environments": results.environments,
        "rows": [row.to_json() for row in results.rows],
        "ratios": [ratio_json(ratio) for ratio in against_baseline(results.rows)],
        "claims": [claim_json(judgement) for judgement in page.judgements],
        "stated_values": [
            present(
                {
                    "paper": dataclasses.asdict(found.value),
                    "ours": found.ours and found.ours.to_json(),
                    "note": found.why or None,
                }
            )
            for found in page.values
        ],
        "within_budget": {
            "latency_ms": page.budget_ms,
            "quantity": page.budget_quantity,
            "best": [_budget(line) for line in page.budget],
        },
        "efficiency": [{**_point(row), "per_joule": row.per_joule, "joules": row.joules} for row in page.efficient],
        "scaling": [
            {**_point(found.row), "alone": found.alone, "efficiency": found.efficiency} for found in page.scaling
        ],
        "loadgen": list(results.loadgen),
        "accuracy": [
            present({**dataclasses.asdict(line), "reached": line.reached}) for line in page.accuracies
        ],
        "hardware": [
            present(
                {
                    "what": line.what, "device": line.device, "samples": line.samples,
                    "cpu_utilization": line.cpu_utilization, **dataclasses.asdict(line.means),
                }
            )
            for line in page.hardware
        ],
        "not_run": [entry.to_json() for entry in results.not_run],
        "not_reported": list(page.absent),
        "plots": [f"plots/{plot.name}.png" for plot in page.plots],
    }  # fmt: skip


def claim_json(judgement: Judgement) -> dict[str, Any]:
    """A claim's verdict."""
    value: dict[str, Any] = present(
        {
            "id": judgement.claim.id,
            "text": judgement.claim.text,
            "claimed_ratio": judgement.claim.ratio,
            "verdict": judgement.verdict.value,
            "why": judgement.why,
            "measured_ratio": judgement.measured,
            "interval": None if judgement.interval is None else list(judgement.interval),
            "of_claimed": judgement.of_claimed,
        }
    )
    return value


def ratio_json(ratio: Ratio) -> dict[str, Any]:
    """A ratio of two modes of one round."""
    return {
        **_point(ratio.row), "base": ratio.base.lane.mode, "ratio": ratio.value, "interval": [ratio.low, ratio.high],
        "confidence": ratio.confidence, "round": ratio.row.round,
    }  # fmt: skip


def _point(row: Row) -> dict[str, Any]:
    lane = row.lane
    return {
        "model": lane.model, "mode": lane.mode, "device": lane.device, "scope": lane.scope, "batch": lane.batch,
        "concurrency": lane.concurrency,
    }  # fmt: skip


def _budget(line: BudgetLine) -> dict[str, Any]:
    cells = {}
    for scope, fit in zip(SCOPES, line.cells, strict=True):
        if fit is not None:
            row = fit.row and fit.row.to_json()
            cells[scope] = present({"row": row, "lowest_latency_ms": fit.lowest_latency_ms})
    return {"model": line.model, "mode": line.mode, "device": line.device, "scopes": cells}
