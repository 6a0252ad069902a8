"""Reading LoadGen's summary log. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.errors import InternalError

# What a scenario is judged by, and what its summary calls it.
_METRICS: Mapping[str, tuple[str, str]] = {
    "single_stream": ("90.0th percentile latency (ns)", "latency_ms"),
    "multi_stream": ("99.0th percentile latency (ns)", "latency_ms"),
    "server": ("Completed samples per second", "inferences_per_second"),
    "offline": ("Samples per second", "inferences_per_second"),
}
_PERCENTILE = re.compile(r"^(\d+\.\d+) percentile latency \(ns\)$")


@dataclass(frozen=True)
class Summary:
    """What LoadGen says of a run.

    Attributes:
        valid: it met the scenario's own conditions: duration, queries, latency bound.
        reasons: why not, and LoadGen's advice.
        metric: what MLPerf judges the scenario by, such as `{"inferences_per_second": 39.5}` or `{"latency_ms": 81.2}`.
        latency_ms: milliseconds by percentile, as logged; of queries.
        fields: every line of the log.
    """

    valid: bool
    reasons: tuple[str, ...]
    metric: Mapping[str, float]
    latency_ms: Mapping[str, float]
    fields: Mapping[str, str]


def parse_summary(text: str, scenario: str) -> Summary:
    """The summary in `mlperf_log_summary.txt`.

    Raises:
        InternalError: it has no result of the scenario: LoadGen ended early, or writes another form.
    """
    fields: dict[str, str] = {}
    reasons = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(name.strip(), value.strip())
        elif line.startswith(" * "):
            reasons.append(line[3:].strip())
    key, unit = _METRICS[scenario]
    found = _number(fields, key)
    if found is None and scenario == "server":
        found = _number(fields, "Scheduled samples per second")
    if found is None or "Result is" not in fields:
        raise InternalError(f"LoadGen's summary has no {key!r}: {text[:300] or 'it is empty'}")
    percentiles = {
        match.group(1): float(value) / 1e6 for name, value in fields.items() if (match := _PERCENTILE.match(name))
    }
    valid = fields["Result is"] == "VALID"
    metric = {unit: found / 1e6 if unit == "latency_ms" else found}
    return Summary(valid, () if valid else tuple(reasons), metric, percentiles, fields)


def _number(fields: Mapping[str, str], key: str) -> float | None:
    try:
        return float(fields[key])
    except (KeyError, ValueError):
        return None
