"""What was measured, as a Markdown table and as rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.bench.environment import Environment, Machine, bench_software, read_machine, speed_settings
from enginehouse.bench.recording import utc
from enginehouse.bench.rows import to_line
from serving.cases import Case
from serving.servers import FLOOR, SERVERS


@dataclass(frozen=True)
class Turn:
    """One window of one server."""

    cpu_seconds: float
    seconds: float
    latencies_ms: tuple[float, ...]

    @property
    def cpu_ms(self) -> float:
        """Of the server, per request."""
        return self.cpu_seconds / len(self.latencies_ms) * 1e3

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies_ms) / self.seconds


@dataclass(frozen=True)
class Measured:
    """A server's turns for one case; with none, `reason` says why."""

    case: Case
    server: str
    versions: Mapping[str, str]
    turns: tuple[Turn, ...]
    reason: str = ""
    time: str = field(default_factory=utc)

    @cached_property
    def cpu_ms(self) -> float:
        """Median of the turns."""
        return statistics.median(turn.cpu_ms for turn in self.turns)

    @cached_property
    def rate(self) -> float:
        return statistics.median(turn.rate for turn in self.turns)

    def latency(self, percent: float) -> float:
        return float(np.percentile(np.concatenate([turn.latencies_ms for turn in self.turns]), percent))

    def ratio(self, other: Measured) -> float:
        """CPU time as a multiple of another server's: the median of the rounds' ratios, each measured side by side."""
        return statistics.median(a.cpu_ms / b.cpu_ms for a, b in zip(self.turns, other.turns, strict=True))

    def line(self) -> str:
        """For the terminal."""
        if not self.turns:
            return f"{self.server}: {self.reason}"
        low, high = min(t.cpu_ms for t in self.turns), max(t.cpu_ms for t in self.turns)
        return (
            f"{self.server}: {self.cpu_ms:.3f} ms CPU ({low:.3f} to {high:.3f}), {self.rate:.0f}/s, "
            f"p50 {self.latency(50):.1f} ms, p99 {self.latency(99):.1f} ms"
        )


def table(measured: Sequence[Measured]) -> str:
    """Markdown: a row for each case, a column for each server; CPU ms, and as a multiple of the floor's."""
    names = [spec.name for spec in SERVERS if any(m.server == spec.name for m in measured)]
    parts = []
    for title, show in (
        ("Server CPU ms per request (in brackets: as a multiple of the bare server's, side by side)", _cpu),
        ("Requests/s", lambda m, _: f"{m.rate:.0f}"),
        ("Latency in ms: p50 / p99", lambda m, _: f"{m.latency(50):.1f} / {m.latency(99):.1f}"),
    ):
        parts += [f"{title}:", "", f"| request | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for case in dict.fromkeys(m.case for m in measured):
            found = {m.server: m for m in measured if m.case == case}
            floor = found.get(FLOOR)
            cells = [show(found[n], floor) if n in found and found[n].turns else "-" for n in names]
            parts.append(f"| {case.name} | {' | '.join(cells)} |")
        parts.append("")
    reasons: dict[tuple[str, str], list[str]] = {}
    for m in measured:
        if m.reason:
            reasons.setdefault((m.server, m.reason), []).append(m.case.name)
    if reasons:
        parts += ["Not measured:", ""]
        parts += [f"- {server} ({'; '.join(cases)}): {reason}" for (server, reason), cases in reasons.items()]
        parts.append("")
    return "\n".join(parts)


def _cpu(measured: Measured, floor: Measured | None) -> str:
    if floor is None or not floor.turns or floor is measured:
        return f"{measured.cpu_ms:.2f}"
    return f"{measured.cpu_ms:.2f} ({measured.ratio(floor):.2f})"


def write_report(folder: Path, measured: Sequence[Measured], *, clients: int, command: str) -> None:
    """Write `table.md`, `rows.jsonl` and `environments.json`, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    machine, settings = read_machine(), speed_settings()
    environments: dict[str, Any] = {}
    lines = []
    for result in measured:
        if not result.turns:
            continue
        software = {**bench_software(), **result.versions}
        environment = Environment(machine, software, scope_of="service", settings=settings)
        environments[environment.digest] = environment.to_json()
        lines.append(to_line(_row(result, clients, environment.digest, command)))
    text = f"{_header(machine, measured, clients, command)}\n{table(measured)}"
    (folder / "table.md").write_text(text)
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "environments.json").write_text(json.dumps(environments, indent=2) + "\n")
    print(text)


def _header(machine: Machine, measured: Sequence[Measured], clients: int, command: str) -> str:
    """What the numbers are of: machine, date, versions and command."""
    versions = {m.server: ", ".join(f"{n} {v}" for n, v in m.versions.items()) for m in measured if m.turns}
    rounds = max((len(m.turns) for m in measured), default=0)
    return "\n".join(
        [
            f"{measured[0].time[:10]}, {machine.cpu}, {machine.logical_cores} cores for servers and clients; "
            f"{clients} clients, medians of {rounds} windows taken in turns.",
            "",
            *(f"- {name}: {found}" for name, found in versions.items()),
            "",
            "```",
            command,
            "```",
            "",
        ]
    )


def _row(result: Measured, clients: int, environment: str, command: str) -> dict[str, Any]:
    case, rates = result.case, [turn.rate * result.case.rows for turn in result.turns]
    latencies = np.concatenate([turn.latencies_ms for turn in result.turns])
    middle = statistics.median(rates)
    return {
        "model": case.model,
        "server": result.server,
        "request": case.name,
        "backend": "onnxruntime",
        "precision": "fp32" if case.model == "identity" else "int32",
        "device": "cpu",
        "batch": case.rows,
        "scope": "served",
        "concurrency": clients,
        "inferences_per_second": round(middle, 1),
        "interval": [round(min(rates), 1), round(max(rates), 1)],
        "stable": bool(max(rates) - min(rates) <= 0.1 * middle),
        "latency_ms": {
            "mean": round(float(latencies.mean()), 3),
            **{f"p{p}": round(float(np.percentile(latencies, p)), 3) for p in (50, 90, 95, 99)},
            "max": round(float(latencies.max()), 3),
        },
        "cpu_ms_per_request": round(result.cpu_ms, 4),
        "cpu_ms_of_windows": [round(turn.cpu_ms, 4) for turn in result.turns],
        "calls": len(latencies),
        "environment": environment,
        "time": result.time,
        "command": command,
    }
