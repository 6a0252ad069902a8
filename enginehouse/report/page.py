"""What the page and `report.json` say, gathered from the results. Pure but for the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.bench.rows import NotRun, Row
from enginehouse.paper.facts import Paper
from enginehouse.report import series
from enginehouse.report.claims import Judgement, Verdict, judge
from enginehouse.report.data import Results
from enginehouse.report.figures import Plot
from enginehouse.report.hardware import HardwareLine, hardware_lines
from enginehouse.report.phases import PhaseView, phase_views
from enginehouse.report.plots import batch_plot, time_plot
from enginehouse.report.ratios import Ratio, against_baseline
from enginehouse.report.tables import (
    SCOPES,
    AccuracyLine,
    BudgetLine,
    Scaling,
    ScenarioLine,
    ScopeLine,
    accuracy_lines,
    most_efficient,
    scaling,
    scenario_lines,
    scope_lines,
    within_budget,
)
from enginehouse.report.values import Beside, beside


@dataclass(frozen=True)
class ModeTable:
    """All rows of one mode on one device for a model and scope."""

    mode: str
    device: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class RatioTable:
    """Throughput of every mode over the baseline's, by batch size. Cells are None where there is no interleaved
    pair."""

    base: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Ratio | None, ...]], ...]


@dataclass(frozen=True)
class ModelSection:
    """One model in one scope."""

    model: str
    scope: str
    plot: Plot
    ratios: RatioTable | None
    tables: tuple[ModeTable, ...]


@dataclass(frozen=True)
class MissingMode:
    """Lanes of one mode that were not run for one reason, together."""

    mode: str
    reason: str
    code: str
    what: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Page:
    """Everything the report shows."""

    results: Results
    paper: Paper
    budget_ms: float
    budget_quantity: str
    others: tuple[str, ...]
    sections: tuple[ModelSection, ...]
    phases: tuple[PhaseView, ...]
    timeline: Plot | None
    hardware: tuple[HardwareLine, ...]
    absent: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    values: tuple[Beside, ...]
    scopes: tuple[ScopeLine, ...]
    budget: tuple[BudgetLine, ...]
    efficient: tuple[Row, ...]
    scaling: tuple[Scaling, ...]
    scenarios: tuple[ScenarioLine, ...]
    accuracies: tuple[AccuracyLine, ...]
    missing: tuple[MissingMode, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        timeline = () if self.timeline is None else (self.timeline,)
        phases = (plot for phase in self.phases for plot in phase.plots)
        return (*phases, *(section.plot for section in self.sections), *timeline)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims got each verdict."""
        return {verdict.value: sum(j.verdict is verdict for j in self.judgements) for verdict in Verdict}


def gather(
    results: Results, paper: Paper, budget_ms: float, budget_quantity: str, others: Mapping[str, Results] | None = None
) -> Page:
    """Judge, tabulate and draw the results. `others` are results of other servers by name."""
    timeline_panels = series.panels(results)
    drawable = any(panel.series for panel in timeline_panels)
    scopes = tuple(scope for scope in SCOPES if any(row.lane.scope == scope for row in results.rows))
    ratios = against_baseline(results.rows)
    return Page(
        results=results,
        paper=paper,
        budget_ms=budget_ms,
        budget_quantity=budget_quantity,
        others=tuple(others or ()),
        sections=tuple(
            _section(results, ratios, model, scope)
            for model in results.models
            for scope in scopes
            if any((row.lane.model, row.lane.scope) == (model, scope) for row in results.rows)
        ),
        phases=phase_views(results, others),
        timeline=time_plot("timeline", timeline_panels, series.phases(results)) if drawable else None,
        absent=series.absent(results),
        hardware=hardware_lines(results),
        judgements=judge(paper, results, others),
        values=beside(paper, results),
        scopes=scope_lines(results.rows),
        efficient=most_efficient(results.rows),
        scaling=scaling(results.rows),
        scenarios=scenario_lines(results.loadgen),
        accuracies=accuracy_lines(results.rows, results.accuracies),
        budget=within_budget(results.rows, budget_ms, budget_quantity),
        missing=group_missing(results.not_run),
    )


def _section(results: Results, ratios: Sequence[Ratio], model: str, scope: str) -> ModelSection:
    rows = [row for row in results.rows if (row.lane.model, row.lane.scope) == (model, scope)]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.lane.mode, row.lane.device), []).append(row)
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"batch-{model}-{scope}")
    return ModelSection(
        model=model,
        scope=scope,
        plot=batch_plot(name, model, scope, _first_devices(rows), results.modes),
        ratios=_ratio_table([ratio for ratio in ratios if ratio.row in rows]),
        tables=tuple(ModeTable(mode, device, tuple(found)) for (mode, device), found in groups.items()),
    )


def _first_devices(rows: Sequence[Row]) -> list[Row]:
    """Of each mode the rows of its first device: phases 1 and 2 show the others, and a figure holds so many curves."""
    first: dict[str, str] = {}
    return [row for row in rows if first.setdefault(row.lane.mode, row.lane.device) == row.lane.device]


def _ratio_table(ratios: Sequence[Ratio]) -> RatioTable | None:
    if not ratios:
        return None
    served = any(ratio.row.lane.scope == "served" for ratio in ratios)
    cells: dict[str, dict[tuple[int, int], Ratio]] = {}
    for ratio in ratios:
        lane = ratio.row.lane
        label = lane.mode + (f" ({lane.device})" if lane.device not in ("cpu", "gpu", "gpu:0") else "")
        cells.setdefault(label, {})[lane.batch, lane.concurrency] = ratio
    columns = sorted({key for found in cells.values() for key in found})
    heads = tuple(f"{batch}, {concurrency} in flight" if served else str(batch) for batch, concurrency in columns)
    lines = tuple((label, tuple(found.get(key) for key in columns)) for label, found in cells.items())
    bases = dict.fromkeys(ratio.base.lane.mode for ratio in ratios)
    return RatioTable(" / ".join(bases), heads, lines)


def group_missing(entries: Sequence[NotRun]) -> tuple[MissingMode, ...]:
    """Entries of one mode and reason together, in order of appearance."""
    groups: dict[tuple[str, str, str], list[NotRun]] = {}
    for entry in entries:
        groups.setdefault((entry.lane.mode, entry.reason, entry.code), []).append(entry)
    found = []
    for (mode, reason, code), members in groups.items():
        by_model: dict[str, dict[int, None]] = {}
        for entry in members:
            by_model.setdefault(entry.lane.model, {})[entry.lane.batch] = None
        what = tuple(f"{model} (batch {', '.join(map(str, batches))})" for model, batches in by_model.items())
        found.append(MissingMode(mode, reason, code, what, len(members)))
    return tuple(found)
