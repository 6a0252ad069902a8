"""The HTML page from its template. Everything is inline: the page requests nothing."""

from __future__ import annotations

from typing import Any

from enginehouse.report.figures import color_of, short
from enginehouse.report.page import Page
from enginehouse.report.tables import SCOPES


def render(page: Page) -> str:
    """The page as one HTML document."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("enginehouse.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=short, gib=_gib, optional=_optional, quantity=_quantity, raw=Markup)
    source, _, _ = loader.get_source(environment, "report.css")
    return environment.get_template("report.html.j2").render(
        page=page,
        results=page.results,
        paper=page.paper,
        css=Markup(source),
        color=lambda mode: color_of(mode, page.results.modes),
        title=f"{page.results.run.get('suite', {}).get('name', 'Benchmark')} results",
        machines=_machines(page),
        headlines=_headlines(page),
        scopes=SCOPES,
    )


def _gib(size: int | float) -> str:
    return f"{size / 2**30:,.0f} GiB"


def _optional(value: float | None, digits: str = "number") -> str:
    """A number, or a dash where there is none."""
    return "\N{EN DASH}" if value is None else short(value)


def _quantity(latency: Any, name: str) -> float:
    return float(getattr(latency, name))


def _machines(page: Page) -> list[dict[str, Any]]:
    """Each distinct machine with the software environments measured on it."""
    found: list[dict[str, Any]] = []
    for digest, environment in page.results.environments.items():
        machine = environment.get("machine", {})
        entry = next((known for known in found if known["machine"] == machine), None)
        if entry is None:
            entry = {"machine": machine, "environments": []}
            found.append(entry)
        entry["environments"].append(
            {
                "digest": digest,
                "scope_of": environment.get("scope_of", ""),
                "software": environment.get("software", {}),
                "settings": environment.get("settings", {}),
            }
        )
    return found


def _headlines(page: Page) -> list[tuple[str, str, str]]:
    """Label, figure and what it is of, for the top of the page."""
    rows = page.results.rows
    if not rows:
        return [("Results", "0", "no row was finished")]
    fastest = max(rows, key=lambda row: row.inferences_per_second)
    quickest = min(rows, key=lambda row: row.latency_ms.p50)
    stable = sum(row.stable for row in rows)
    flagged = sum(bool(row.throttled or row.other_processes) for row in rows)
    flags = f", {flagged} throttled or beside other processes" if flagged else ""
    return [
        ("Highest throughput", f"{short(fastest.inferences_per_second)} images/s", str(fastest.lane)),
        ("Lowest median latency", f"{short(quickest.latency_ms.p50)} ms", str(quickest.lane)),
        ("Results", str(len(rows)), f"{stable} stable, {len(rows) - stable} not{flags}"),
        ("Not run", str(len(page.results.not_run)), "with the reason for each, below"),
    ]
