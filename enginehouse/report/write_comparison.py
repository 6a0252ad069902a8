"""Writing a comparison: Markdown, JSON and its plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.bench.store import replace_text
from enginehouse.paper.facts import Paper
from enginehouse.report.claims import judge
from enginehouse.report.compare import Compared, Comparison, comparison_plots, to_json
from enginehouse.report.figures import short
from enginehouse.report.markdown import table

# The claims that compare servers.
_SERVERS = ("C8", "C9")


@dataclass(frozen=True)
class ComparisonFiles:
    """What was written."""

    markdown: Path
    json: Path
    plots: tuple[Path, ...]


def write_comparison(comparison: Comparison, directory: Path, paper: Paper) -> ComparisonFiles:
    """Write `comparison.md`, `comparison.json` and `plots/compare-*.png`.

    Raises:
        ResourceExhaustedError: the disk is full.
    """
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    drawn = comparison_plots(comparison)
    paths = tuple(plots / f"{plot.name}.png" for plot in drawn)
    for plot, path in zip(drawn, paths, strict=True):
        path.write_bytes(plot.png)
    files = ComparisonFiles(directory / "comparison.md", directory / "comparison.json", paths)
    replace_text(files.json, json.dumps(to_json(comparison), indent=2, ensure_ascii=False) + "\n")
    figures = [f"![{plot.title}](plots/{plot.name}.png)" for plot in drawn]
    parts = [
        f"# {' against '.join(comparison.names)}",
        table(("set", "measured on"), list(zip(comparison.names, comparison.machines, strict=True))),
        "Throughput in images/s with the interval of each run; ratios are to the first set. The runs were not "
        "interleaved: an interval says nothing of what differs from run to run.",
        table(columns(comparison), [cells(point) for point in comparison.points]),
        *figures,
        "## The paper's claims about servers",
        table(("", "claim", "verdict", "why"), claims(comparison, paper)),
    ]
    replace_text(files.markdown, "\n\n".join(parts) + "\n")
    return files


def columns(comparison: Comparison) -> tuple[str, ...]:
    """Heads of the table of points."""
    first, *others = comparison.names
    heads = [head for name in others for head in (name, f"{name} / {first}", f"{name}, mean ms")]
    return ("model", "mode", "device", "scope", "batch", first, f"{first}, mean ms", *heads)


def cells(point: Compared) -> list[str]:
    """A line of the table of points."""
    batch = str(point.batch) if point.concurrency == 1 else f"{point.batch}, {point.concurrency} in flight"
    line = [point.model, point.mode, point.device, point.scope, batch]
    for number, (row, ratio) in enumerate(zip(point.rows, point.ratios, strict=True)):
        rate = "-" if row is None else f"{short(row.inferences_per_second)}{'' if row.stable else ' (not stable)'}"
        latency = "-" if row is None else short(row.latency_ms.mean)
        line += [rate, *(["-" if ratio is None else ratio.text] if number else []), latency]
    return line


def claims(comparison: Comparison, paper: Paper) -> Sequence[list[str]]:
    """The paper's claims about servers, judged by the sets."""
    first, *others = zip(comparison.names, comparison.sets, strict=True)
    judged = judge(paper, first[1], dict(others))
    return [[j.claim.id, j.claim.text, j.verdict.value, j.why] for j in judged if j.claim.id in _SERVERS]
