"""Result sets side by side: the same points of two or more runs, with ratios to the first and their intervals. Pure.

Runs are not interleaved: an interval says how sure each run is of itself, and nothing of what differs from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.bench.rows import Row, present
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.report.data import Results, load_results, point_of
from enginehouse.report.figures import PALETTE, Plot
from enginehouse.report.plots import Line, lines_plot
from enginehouse.report.ratios import Ratio
from enginehouse.report.tables import SCOPES

_DASHES = (None, (5.0, 2.0), (2.0, 1.5), (6.0, 2.0, 1.5, 2.0))


@dataclass(frozen=True)
class Compared:
    """One point in every set: its row, or None where a set has none.

    Attributes:
        ratios: throughput of each set over the first's; None where either has no row.
    """

    model: str
    mode: str
    device: str
    scope: str
    batch: int
    concurrency: int
    rows: tuple[Row | None, ...]
    ratios: tuple[Ratio | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Sets by name, the first the base, and the points that at least two of them have."""

    names: tuple[str, ...]
    sets: tuple[Results, ...]
    points: tuple[Compared, ...]
    alone: tuple[int, ...]

    @property
    def machines(self) -> tuple[str, ...]:
        """In words, what each set was measured on."""
        return tuple(machine_of(results) for results in self.sets)


def load_sets(directories: Sequence[Path]) -> dict[str, Results]:
    """Result sets by a short name each, the directory's own where that tells them apart.

    Raises:
        InvalidArgumentError: fewer than two, or one twice.
        NotFoundError: one holds no results.
    """
    paths = [directory.resolve() for directory in directories]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise InvalidArgumentError("a comparison needs two result folders at least, each named once")
    short = [path.name for path in paths]
    if len(set(short)) < len(short):
        short = [f"{path.parent.name}/{path.name}" for path in paths]
    if len(set(short)) < len(short):
        short = [str(path) for path in paths]
    return {name: load_results(path) for name, path in zip(short, paths, strict=True)}


def compare(sets: Mapping[str, Results]) -> Comparison:
    """The points that at least two sets have, in the first set's order.

    Raises:
        FailedPreconditionError: they have none in common.
    """
    by_point = [{point_of(row.lane): row for row in results.rows} for results in sets.values()]
    every = dict.fromkeys(point for rows in by_point for point in rows)
    shared = [point for point in every if sum(point in rows for rows in by_point) > 1]
    if not shared:
        raise FailedPreconditionError(
            f"{', '.join(sets)} share no point: the same model, mode, device, scope, batch size and requests in flight"
        )
    points = []
    for point in shared:
        rows = tuple(found.get(point) for found in by_point)
        base = rows[0]
        ratios = tuple(Ratio(row, base) if row is not None and base is not None else None for row in rows)
        points.append(Compared(*point, rows=rows, ratios=ratios))
    alone = tuple(sum(point not in shared for point in rows) for rows in by_point)
    return Comparison(tuple(sets), tuple(sets.values()), tuple(points), alone)


def machine_of(results: Results) -> str:
    """CPU and GPUs of a set, each once."""
    names: dict[str, None] = {}
    for environment in results.environments.values():
        machine = environment.get("machine", {})
        gpus: dict[str, int] = {}
        for gpu in machine.get("gpus", {}).get("devices", ()):
            gpus[gpu["product"]] = gpus.get(gpu["product"], 0) + 1
        cores = f" ({machine['usable_cores']} cores)" if machine.get("usable_cores") else ""
        parts = [f"{machine.get('cpu') or 'CPU unknown'}{cores}"]
        parts += [product if count == 1 else f"{count} {product}" for product, count in gpus.items()]
        names[", ".join(parts)] = None
    return "; ".join(names) or "machine not recorded"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison for programs; what a set does not have is absent."""
    points = []
    for point in comparison.points:
        found = {}
        for name, row, ratio in zip(comparison.names, point.rows, point.ratios, strict=True):
            if row is None:
                continue
            found[name] = present(
                {
                    "inferences_per_second": row.inferences_per_second,
                    "interval": list(row.interval),
                    "latency_ms": {"mean": row.latency_ms.mean, "p50": row.latency_ms.p50, "p99": row.latency_ms.p99},
                    "stable": row.stable,
                    "ratio": None if ratio is None else ratio.value,
                    "ratio_interval": None if ratio is None else [ratio.low, ratio.high],
                    "joules": row.joules,
                }
            )
        key = ("model", "mode", "device", "scope", "batch", "concurrency")
        points.append({**{name: getattr(point, name) for name in key}, "sets": found})
    machines = dict(zip(comparison.names, comparison.machines, strict=True))
    return {"base": comparison.names[0], "machines": machines, "points": points}


def comparison_plots(comparison: Comparison) -> tuple[Plot, ...]:
    """For each model, scope and mode with two batch sizes in common: throughput and latency against batch, a line a
    set."""
    keys = dict.fromkeys((point.model, point.mode, point.scope) for point in comparison.points)
    plots = []
    for model, mode, scope in sorted(keys, key=lambda key: SCOPES.index(key[2]) if key[2] in SCOPES else len(SCOPES)):
        members = [p for p in comparison.points if (p.model, p.mode, p.scope) == (model, mode, scope)]
        first = (members[0].device, members[0].concurrency)
        members = [point for point in members if (point.device, point.concurrency) == first]
        if len(members) < 2:
            continue
        lines = []
        for number, name in enumerate(comparison.names):
            rows = tuple(row for point in members if (row := point.rows[number]) is not None)
            if rows:
                lines.append(Line(name, rows, PALETTE[number % len(PALETTE)], _DASHES[number % len(_DASHES)]))
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{model}-{mode}-{scope}")
        plots.append(lines_plot(f"compare-{stem}", f"{model}, {mode} on {first[0]} ({scope}; runs apart)", lines))
    return tuple(plots)
