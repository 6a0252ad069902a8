"""The report's summary as Markdown, for a repository's page: the claims, the budget, the scopes, two plots, what did
not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from enginehouse.bench.rows import Row
from enginehouse.report.claims import Judgement
from enginehouse.report.figures import short
from enginehouse.report.page import Page
from enginehouse.report.tables import SCOPES, BudgetLine

_NONE = "\N{EN DASH}"


def summary(page: Page) -> str:
    """The summary as one Markdown document; plots are those beside it in `plots/`."""
    run, results = page.results.run, page.results
    suite = run.get("suite", {})
    parts = [f"# {suite.get('name', 'Benchmark')}: results", _machines(page)]
    if run.get("status", "complete") != "complete":
        parts.append(f"The run was **{run['status']}**: not every row was measured.")
    parts += ["## The paper's claims", _claims(page)]
    if results.rows:
        parts += [
            f"## Best throughput within {page.budget_ms:g} ms ({page.budget_quantity} latency of a batch)",
            _budget(page),
        ]
        parts += ["## Highest throughput of each mode", _best(page)]
    if page.accuracies:
        parts += ["## Accuracy", _accuracy(page)]
    if page.efficient:
        parts += ["## Energy", _energy(page)]
    if page.scaling:
        parts += ["## All GPUs at once", _scaling(page)]
    if page.scenarios:
        parts += ["## MLPerf's scenarios (LoadGen)", _scenarios(page)]
    parts += [f"![{plot.title}](plots/{plot.name}.png)" for plot in page.plots[:4]]
    parts += ["## Beside the paper's values", _values(page)]
    if page.missing:
        lines = [[entry.mode, entry.reason, str(entry.count)] for entry in page.missing]
        parts += ["## Not run", table(("mode", "reason", "rows"), lines)]
    if "command" in run:
        parts.append(f"Command: `{run['command']}`. Everything else is in `report.html` and `report.json`.")
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars and newlines in cells are escaped."""
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    rows = [list(columns), ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _machines(page: Page) -> str:
    names = []
    for environment in page.results.environments.values():
        machine = environment.get("machine", {})
        gpus = [gpu["product"] for gpu in machine.get("gpus", {}).get("devices", ())]
        cores = f", {machine['usable_cores']} cores" if machine.get("usable_cores") else ""
        names.append(", ".join([f"{machine.get('cpu') or 'CPU unknown'}{cores}", *gpus]))
    started = str(page.results.run.get("started", ""))[:10]
    return "; ".join(dict.fromkeys(names)) + (f"; {started}." if started else ".")


def _claims(page: Page) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in page.verdicts.items())
    lines = [_claim(judgement) for judgement in page.judgements]
    columns = ("", "claim", "verdict", "paper", "ours (interval)", "ours / paper", "why")
    return f"{counts}.\n\n" + table(columns, lines)


def _claim(judgement: Judgement) -> list[str]:
    claim, ours = judgement.claim, _NONE
    if judgement.measured is not None:
        ours = f"{judgement.measured:.3g}x"
        if judgement.interval is not None:
            ours += f" ({judgement.interval[0]:.3g} to {judgement.interval[1]:.3g})"
    paper = _NONE if claim.ratio is None else f"{claim.ratio:g}x"
    share = _NONE if judgement.of_claimed is None else f"{judgement.of_claimed:.2f}"
    return [claim.id, claim.text, f"**{judgement.verdict.value}**", paper, ours, share, judgement.why]


def _budget(page: Page) -> str:
    columns = ("model", "mode", "device", *(f"{scope}: images/s (batch)" for scope in SCOPES))
    return table(columns, [_budget_line(line) for line in page.budget])


def _budget_line(line: BudgetLine) -> list[str]:
    cells = []
    for fit in line.cells:
        if fit is None:
            cells.append(_NONE)
        elif fit.row is None:
            cells.append(f"none; lowest {short(fit.lowest_latency_ms)} ms")
        else:
            cells.append(f"{short(fit.row.inferences_per_second)} ({fit.row.lane.batch})")
    return [line.model, line.mode, line.device, *cells]


def _best(page: Page) -> str:
    lines = []
    for key in dict.fromkeys((line.model, line.mode, line.device) for line in page.scopes):
        members = [line for line in page.scopes if (line.model, line.mode, line.device) == key]
        cells = [_rate(max((line.cells[n] for line in members if line.cells[n]), key=_throughput, default=None))
                 for n in range(len(SCOPES))]  # fmt: skip
        lines.append([*key, *cells])
    return table(("model", "mode", "device", *(f"{scope}: images/s (interval), batch" for scope in SCOPES)), lines)


def _throughput(row: Row | None) -> float:
    return row.inferences_per_second if row else 0.0


def _rate(row: Row | None) -> str:
    if row is None:
        return _NONE
    flags = [
        word
        for word, on in (
            ("not stable", not row.stable),
            ("throttled", row.throttled),
            ("another process on the GPU", row.other_processes),
        )
        if on
    ]
    text = (
        f"{short(row.inferences_per_second)} ({short(row.interval[0])} to {short(row.interval[1])}), {row.lane.batch}"
    )
    return f"{text}; {', '.join(flags)}" if flags else text


def _accuracy(page: Page) -> str:
    lines = []
    for line in page.accuracies:
        found = line.accuracy
        bar = _NONE if line.reached is None else "reached" if line.reached else "missed"
        top = [_percent(value) for value in (found.top1, found.top5, found.reference_top1, line.of_reference)]
        sqnr = _NONE if found.sqnr_db is None else f"{found.sqnr_db:.1f}"
        lines.append([line.model, line.mode, found.data, *top, bar, sqnr])
    columns = ("model", "mode", "data", "top-1", "top-5", "FP32 top-1", "of FP32", "99 % of FP32", "SQNR, dB")
    return table(columns, lines)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.2f} %"


def _energy(page: Page) -> str:
    lines = [
        [row.lane.model, row.lane.mode, row.lane.device, row.lane.scope, str(row.lane.batch), short(row.power_w or 0),
         short(row.per_joule or 0), f"{row.joules or 0:.3g}"]
        for row in page.efficient
    ]  # fmt: skip
    return table(("model", "mode", "device", "scope", "batch", "W", "images/s/W", "J/image"), lines)


def _scaling(page: Page) -> str:
    lines = []
    for found in page.scaling:
        lane, rate = found.row.lane, short(found.row.inferences_per_second)
        point = [lane.model, lane.mode, lane.scope, str(lane.batch), str(found.row.gpus)]
        lines.append([*point, rate, short(found.alone), f"{found.efficiency:.1%}"])
    columns = ("model", "mode", "scope", "batch", "GPUs", "at once, images/s", "each alone, added", "efficiency")
    return table(columns, lines)


def _scenarios(page: Page) -> str:
    lines = []
    for line in page.scenarios:
        result = ("valid" if line.valid else "invalid") + (
            f", shortened to {line.seconds:g} s" if line.shortened else ""
        )
        rate = _NONE if line.inferences_per_second is None else short(line.inferences_per_second)
        latency = _NONE if line.latency_ms is None else short(line.latency_ms)
        ratio = _NONE if line.ratio is None else f"{line.ratio:.3f}"
        lines.append([line.engine, line.scope, line.scenario, str(line.batch), result, rate, latency, ratio])
    columns = (
        "engine",
        "scope",
        "scenario",
        "batch",
        "LoadGen's result",
        "images/s",
        "latency, ms",
        "over our harness",
    )
    return table(columns, lines)


def _values(page: Page) -> str:
    system = page.paper.system
    lines = []
    for found in page.values:
        value, ours = found.value, found.ours
        paper = "" if value.images_per_second is None else f"{value.images_per_second:g} images/s"
        latency = value.latency_ms or value.latency_ms_about or value.latency_ms_within
        paper += "" if latency is None else f"{', ' if paper else ''}{latency:g} ms"
        mine = found.why
        if ours is not None:
            mine = f"{short(ours.inferences_per_second)} images/s, {short(ours.latency_ms.mean)} ms"
            mine += f" (batch {ours.lane.batch})"
        lines.append([value.id, value.mode, paper, mine])
    hardware = f"What {system['gpu']} and {system['cpu']} did in 2018 stands beside this machine's"
    note = f"{hardware}; the difference is no result."
    return f"{note}\n\n" + table(("", "mode", "the paper's hardware", "this run"), lines)
