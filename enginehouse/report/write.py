"""Writing a report: one self-contained HTML page, a Markdown summary, plots as PNG, the rows as CSV, everything as
JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.bench.rows import Row
from enginehouse.bench.store import replace_text
from enginehouse.errors import InvalidArgumentError
from enginehouse.paper.facts import Paper, load_paper
from enginehouse.report.as_json import to_json
from enginehouse.report.data import load_results
from enginehouse.report.markdown import summary
from enginehouse.report.page import gather
from enginehouse.report.tables import BUDGET_MS, BUDGET_QUANTITIES


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    markdown: Path
    json: Path
    csv: Path
    plots: tuple[Path, ...]


def write_report(
    directory: Path,
    *,
    output: Path | None = None,
    budget_ms: float = BUDGET_MS,
    budget_quantity: str = "p99",
    paper: Paper | None = None,
    against: Sequence[Path] = (),
    more: Sequence[Path] = (),
) -> ReportFiles:
    """Write the report of a results directory.

    Args:
        directory: as `run_suite` left it, finished or interrupted; or a file of rows with the rest beside it.
        output: where to write; the directory by default. Existing reports there are replaced.
        budget_ms: the latency budget of "best throughput within a latency budget", milliseconds.
        budget_quantity: which latency must stay within it: "mean", "p50", "p90", "p95", "p99" or "max".
        paper: the facts to hold the run against; the packaged ones by default.
        more: other results of the same machine, to be one with these.
        against: results directories of other servers, to stand beside this one's as the paper compares servers.

    Returns:
        the files written: `report.html`, `report.md`, `report.json`, `rows.csv` and `plots/*.png`.

    Raises:
        NotFoundError: the directory holds no results.
        InvalidArgumentError: a file in it cannot be read, or the budget makes no sense.
    """
    from enginehouse.report.render import render

    if budget_quantity not in BUDGET_QUANTITIES:
        raise InvalidArgumentError(
            f"budget quantity {budget_quantity!r}: expected one of {', '.join(BUDGET_QUANTITIES)}"
        )
    if not budget_ms > 0:
        raise InvalidArgumentError(f"latency budget {budget_ms!r}: expected a positive number of milliseconds")
    others = {other.resolve().stem: load_results(other) for other in against}
    page = gather(load_results(directory, more), paper or load_paper(), budget_ms, budget_quantity, others)
    target = output or (directory.parent if directory.is_file() else directory)
    plots = target / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        html=target / "report.html",
        markdown=target / "report.md",
        json=target / "report.json",
        csv=target / "rows.csv",
        plots=tuple(plots / f"{plot.name}.png" for plot in page.plots),
    )
    for plot, path in zip(page.plots, files.plots, strict=True):
        path.write_bytes(plot.png)
    replace_text(files.csv, rows_csv(page.results.rows))
    replace_text(files.json, json.dumps(to_json(page), indent=2, ensure_ascii=False) + "\n")
    replace_text(files.html, render(page))
    replace_text(files.markdown, summary(page))
    return files


def rows_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV, nested keys joined by dots; a cell is empty where nothing was measured."""
    flat = [_flat(row.to_json()) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if key == "interval":
            flat["interval.low"], flat["interval.high"] = item
        elif isinstance(item, list):
            flat[prefix + key] = " ".join(map(str, item))
        elif isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = item
    return flat
