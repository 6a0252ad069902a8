"""What a tuning leaves: the configuration, a table that shows why, and a row for each load that was measured."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from enginehouse.client.values import Batching, ServedVersion, ServingConfig
from enginehouse.client.values.convert import id_of
from enginehouse.tune.engines import Candidate
from enginehouse.tune.goal import Goal, Level, Trial
from enginehouse.tune.run import Outcome
from enginehouse.tune.space import Point

COLUMNS = (
    "engine", "precision", "accuracy", "max batch", "instances", "delay ms", "load", "inferences/s", "p50 ms", "p99 ms",
    "verdict",
)  # fmt: skip
# From here on the load generator was what limited the throughput, not the service.
GENERATOR_BOUND = 0.85


@dataclass(frozen=True)
class Tuning:
    """A finished search and what it searched.

    Attributes:
        served: the name that the configuration is for.
        batching: how requests of the best point wait; None when there is none.
        former: what was configured before; None when nothing was.
        command: the command line, for the record.
        time: when it began, ISO 8601.
    """

    served: str
    goal: Goal
    candidates: Sequence[Candidate]
    outcome: Outcome
    batching: Batching | None
    former: ServingConfig | None
    command: str
    time: str

    @property
    def best(self) -> Point | None:
        return self.outcome.best.point if self.outcome.best else None

    def by_name(self) -> Mapping[str, Candidate]:
        return {candidate.engine.name: candidate for candidate in self.candidates}


def configuration(tuning: Tuning) -> dict[str, Any] | None:
    """The serving configuration that was found, as the API's JSON; None when nothing does."""
    point, batching = tuning.best, tuning.batching
    if point is None or batching is None:
        return None
    engine = tuning.by_name()[point.engine].engine
    former = tuning.former or ServingConfig(name=f"{engine.name.split('/engines/')[0]}/servingConfigs/{tuning.served}")
    version = former.newest.version + 1 if former.newest else 1
    config = dataclasses.replace(
        former, versions=(ServedVersion(version, engine.name),), instances=point.instances, batching=batching, etag=""
    )
    found: dict[str, Any] = json_format.MessageToDict(config.to_proto())
    return found


def load_command(tuning: Tuning) -> str:
    """The command that serves what was found."""
    point = tuning.best
    if point is None:
        return ""
    words = ["enginehouse", "load", tuning.served, id_of(point.engine), "--instances", str(point.instances)]
    if point.max_batch_size:
        words += ["--max-batch", str(point.max_batch_size), "--max-delay-ms", f"{point.delay_ms:g}"]
    return shlex.join(words)


def rows(tuning: Tuning) -> list[dict[str, Any]]:
    """A row for each load that was measured, in order; what was not measured is absent."""
    known, best = tuning.by_name(), tuning.outcome.best
    found = []
    for trial in tuning.outcome.trials:
        candidate = known[trial.point.engine]
        engine = candidate.engine
        shared: dict[str, Any] = {
            "model": id_of(engine.model),
            "engine": engine.id,
            "engine_key": engine.key,
            "backend": engine.backend,
            "precision": engine.precision,
            "device": engine.device.product,
            "scope": "served",
            "max_batch_size": trial.point.max_batch_size,
            "instances": trial.point.instances,
            "delay_ms": trial.point.delay_ms,
            "confirmation": trial.confirmation,
            "time": tuning.time,
            "command": tuning.command,
        }
        if candidate.accuracy is not None:
            shared["accuracy"] = {candidate.accuracy.measure: candidate.accuracy.value}
        if trial.error:
            found.append({**shared, "chosen": False, "verdict": trial.error})
        chosen = tuning.goal.best_level(trial) if trial is best else None
        found += [{**shared, **_measured(tuning.goal, level), "chosen": level is chosen} for level in trial.levels]
    return found


def table(tuning: Tuning) -> list[tuple[str, ...]]:
    """A line for each configuration, the best first, at the load that says most for it; then the engines refused."""
    known = tuning.by_name()
    lines: list[tuple[str, ...]] = []
    refuted = _refuted(tuning)

    def rank(trial: Trial) -> tuple[bool, bool, tuple[int, float]]:
        return trial is tuning.outcome.best, trial.point not in refuted, tuning.goal.score(trial)

    ranking = sorted(tuning.outcome.trials, key=rank, reverse=True)
    for trial in ranking:
        candidate, level, point = known[trial.point.engine], tuning.goal.best_level(trial), trial.point
        lines.append(
            (
                id_of(point.engine),
                candidate.engine.precision,
                _accuracy(candidate),
                str(point.max_batch_size or "-"),
                str(point.instances),
                f"{point.delay_ms:g}",
                *_figures(level),
                _verdict(tuning, trial, level),
            )
        )
    for candidate in tuning.candidates:
        if candidate.refusal:
            engine = candidate.engine
            lines.append(
                (engine.id, engine.precision, _accuracy(candidate), *["-"] * 7, f"refused: {candidate.refusal}")
            )
    return lines


def markdown(tuning: Tuning) -> str:
    """The table with what was found above it."""
    goal, outcome = tuning.goal, tuning.outcome
    wanted = "most inferences/s" if goal.objective == "throughput" else "lowest p99"
    limits = [f"p99 at most {goal.p99_ms:g} ms"] if goal.p99_ms is not None else []
    limits += [f"at least {goal.min_throughput:g} inferences/s"] if goal.min_throughput else []
    found = table(tuning)
    lines = [
        f"# {tuning.served}",
        "",
        f"Wanted: {', '.join([wanted, *limits])}. Found in {outcome.seconds:.0f} s, {len(outcome.trials)} trials"
        f"{'' if outcome.complete else '; the time was over before the search was'}.",
        "",
        f"`{load_command(tuning)}`" if tuning.best else "No configuration does.",
    ]
    if tuning.best and not outcome.confirmed:
        lines += ["", "There was no time to measure it a second time."]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in found]
    lines += ["", f"{tuning.time}: `{tuning.command}`", ""]
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """A value as JSON for a file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _measured(goal: Goal, level: Level) -> dict[str, Any]:
    found: dict[str, Any] = {
        "concurrency": level.concurrency,
        "offered_per_second": level.rate,
        "batch": level.rows,
        "requests": level.requests,
        "failed": level.failed,
        "inferences_per_second": level.inferences_per_second,
        "latency_ms": dataclasses.asdict(level.latency) if level.latency else None,
        "generator_cpu": level.generator_cpu,
        "verdict": goal.refusal(level) or "does",
    }
    return {name: value for name, value in found.items() if value is not None}


def _refuted(tuning: Tuning) -> set[Point]:
    """Configurations that did at first and not again."""
    again = (trial for trial in tuning.outcome.trials if trial.confirmation)
    return {trial.point for trial in again if not tuning.goal.feasible(trial)}


def _accuracy(candidate: Candidate) -> str:
    return f"{candidate.accuracy.value:.4g}" if candidate.accuracy else "-"


def _figures(level: Level | None) -> tuple[str, str, str, str]:
    if level is None:
        return "-", "-", "-", "-"
    load = f"{level.concurrency} in flight" if level.concurrency is not None else f"{level.rate:g}/s offered"
    rate = f"{level.inferences_per_second:.4g}"
    if level.latency is None:
        return load, rate, "-", "-"
    return load, rate, f"{level.latency.p50:.3g}", f"{level.latency.p99:.3g}"


def _verdict(tuning: Tuning, trial: Trial, level: Level | None) -> str:
    refusal = tuning.goal.verdict(trial)
    words = [f"rejected: {refusal}"] if refusal else ["best" if trial is tuning.outcome.best else "does"]
    if trial.confirmation:
        words.append("second look")
    elif not refusal and trial.point in _refuted(tuning):
        words = ["did, but not on the second look"]
    if level is not None and level.generator_cpu > GENERATOR_BOUND:
        words.append("the load generator was the limit")
    return "; ".join(words)
