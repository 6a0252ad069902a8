"""Result rows on disk: appended as soon as they are measured, so that a run that was cut goes on where it ended."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorrt_speed.variants import Point

PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
# The last windows of a point agree within this part of the largest.
STABLE = 0.05


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, on disk when this returns. One that a cut left unfinished before it stays by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none when it is not there. A last line that was cut is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def measured(rows: Sequence[Mapping[str, Any]]) -> set[Point]:
    """The points that have a row."""
    return {Point(row["variant"], row["batch"], row["scope"], row["instances"]) for row in rows}


def latency(milliseconds: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles (nearest rank) and maximum, in ms."""
    ordered = sorted(milliseconds)
    ranks = {name: ordered[max(0, -(-len(ordered) * q // 100) - 1)] for name, q in PERCENTILES.items()}
    found = {"mean": statistics.fmean(ordered), **ranks, "max": ordered[-1]}
    return {name: round(value, 4) for name, value in found.items()}


def speed(rates: Sequence[float]) -> dict[str, Any]:
    """What a row says of its windows' rates, in images a second."""
    last = rates[-3:]
    return {
        "inferences_per_second": round(statistics.median(rates), 1),
        "interval": [round(min(rates), 1), round(max(rates), 1)],
        "stable": len(rates) >= 3 and max(last) - min(last) <= STABLE * max(last),
    }


def add_environment(folder: Path, facts: Mapping[str, Any]) -> str:
    """Keep an environment in `environments.json`; returns its digest."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "environments.json"
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps({**known, digest: dict(facts)}, indent=1) + "\n")
    whole.replace(path)
    return digest
