"""Whether memory grew over a run, and whether what failed was to fail."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

GROWTH, GROWTH_BYTES = 0.02, 16 << 20
EDGE_SECONDS = 20.0
# After all models are ready again, for what was on its way.
SLACK_SECONDS = 3.0
# More open files than this are a leak.
FILES = 16

Failure = tuple[float, str, str]


@dataclass
class Sample:
    """Bytes at a moment (seconds since the start); `device` of the workers, or of all that use it."""

    at: float
    front: int
    workers: int
    pids: list[int]
    files: int
    device: int | None = None


def growth(values: Sequence[tuple[float, float]], settled: float) -> dict[str, Any] | None:
    """First and last values of a series of (seconds, value) after it settled, each a median over its edge."""
    kept = [(at, value) for at, value in values if at >= values[0][0] + settled] if values else []
    if len(kept) < 4:
        return None
    edge = min(EDGE_SECONDS, (kept[-1][0] - kept[0][0]) / 3)
    first = statistics.median(value for at, value in kept if at <= kept[0][0] + edge)
    last = statistics.median(value for at, value in kept if at >= kept[-1][0] - edge)
    steady = last - first <= max(GROWTH * first, GROWTH_BYTES)
    return {"first": first, "last": last, "grew": last - first, "seconds": kept[-1][0] - kept[0][0], "steady": steady}


def lives(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> list[list[tuple[float, float]]]:
    """A series for each set of worker processes, in order; those without a worker left out."""
    found: list[list[tuple[float, float]]] = []
    pids: list[int] = []
    for item in samples:
        value = read(item)
        if item.pids != pids:
            pids = item.pids
            found.append([])
        if pids and value is not None:
            found[-1].append((item.at, value))
    return [series for series in found if series]


def judge(
    samples: Sequence[Sample], errors: Sequence[Failure], lost: tuple[float, float] | None, settled: float
) -> dict[str, Any]:
    """The verdict, with what decided it.

    Args:
        errors: seconds since the start, what was asked, what was told.
        lost: from when to when a worker was away.
        settled: seconds of a process's life that are not judged.
    """
    series = {"front": [[(s.at, float(s.front)) for s in samples]]}
    series["workers"] = lives(samples, lambda s: s.workers)
    series["device"] = lives(samples, lambda s: s.device)
    found = {f"{name} {n}": growth(life, settled) for name, all_of in series.items() for n, life in enumerate(all_of)}
    memory = {name: item for name, item in found.items() if item is not None}
    files = [s.files for s in samples[len(samples) // 4 :]]
    begin, end = lost or (0.0, -SLACK_SECONDS)
    inside = [e for e in errors if begin <= e[0] <= end + SLACK_SECONDS]
    outside = [e for e in errors if e not in inside]
    reasons = [f"{name} grew by {item['grew'] / 2**20:.1f} MiB" for name, item in memory.items() if not item["steady"]]
    reasons += [f"{len(outside)} requests failed while no worker was away"] if outside else []
    if strange := [e for e in inside if "UNAVAILABLE" not in e[2]]:
        reasons.append(f"{len(strange)} requests failed with another status than UNAVAILABLE")
    if files and statistics.median(files[-5:]) > statistics.median(files[:5]) + FILES:
        reasons.append(f"open files grew from {files[0]} to {files[-1]}")
    if "front 0" not in memory:
        reasons.append("too short to judge memory")
    return {
        "passed": not reasons,
        "reasons": reasons,
        "memory": memory,
        "failed_while_away": len(inside),
        "told_while_away": sorted({text for _, _, text in inside})[:8],
        "failed_otherwise": outside[:20],
    }
