"""A results directory, read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.bench import store
from enginehouse.bench.rows import Lane, NotRun, Row
from enginehouse.bench.telemetry import timestamp
from enginehouse.errors import InvalidArgumentError, NotFoundError
from enginehouse.report.script_rows import (
    MeasuredAccuracy,
    accuracy_row,
    is_accuracy_row,
    is_script_row,
    suite_environment,
    suite_row,
)


@dataclass(frozen=True)
class Results:
    """What a run left: rows in the order of suite and batch, the rest as JSON objects.

    `left_out` counts rows that have no latencies: of a script, with several instances at once. `accuracies` are of rows
    that say nothing of speed.
    """

    rows: tuple[Row, ...]
    not_run: tuple[NotRun, ...]
    environments: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    phases: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    engines: tuple[Mapping[str, Any], ...]
    windows: tuple[Mapping[str, Any], ...] = ()
    loadgen: tuple[Mapping[str, Any], ...] = ()
    left_out: int = 0
    accuracies: tuple[MeasuredAccuracy, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Models with rows, in their order of appearance."""
        return tuple(dict.fromkeys(row.lane.model for row in self.rows))

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes with rows, in their order of appearance."""
        return tuple(dict.fromkeys(row.lane.mode for row in self.rows))

    def seconds_of(self, kind: str) -> tuple[float, ...]:
        """How long each phase of a kind took."""
        return tuple(
            timestamp(str(phase["end"])) - timestamp(str(phase["start"]))
            for phase in self.phases
            if phase.get("kind") == kind
        )

    def machine(self, row: Row) -> Mapping[str, Any]:
        """The machine a row was measured on; empty when it is not recorded."""
        machine: Mapping[str, Any] = self.environments.get(row.environment, {}).get("machine", {})
        return machine


def load_results(source: Path, more: Sequence[Path] = ()) -> Results:
    """Read results: a directory as a run left it, or a file of rows with the rest beside it.

    Args:
        more: other results of the same machine; of a point that two have, the last counts.

    Raises:
        NotFoundError: one is none: it has neither rows nor a run nor LoadGen's results.
        InvalidArgumentError: a file in it cannot be read; names the file.
    """
    parts = [_load(path) for path in (source, *more)]
    newest = {row.lane: row for part in parts for row in part.rows}
    measured = {point_of(lane) for lane in newest}
    run = parts[0].run
    accuracies = {(a.model, a.mode, a.device, a.accuracy.data): a for part in parts for a in part.accuracies}
    return Results(
        rows=tuple(sorted(newest.values(), key=_order(run, list(newest)))),
        not_run=tuple(entry for part in parts for entry in part.not_run if point_of(entry.lane) not in measured),
        environments={digest: found for part in parts for digest, found in part.environments.items()},
        run=run,
        phases=parts[0].phases,
        samples=parts[0].samples,
        engines=tuple(engine for part in parts for engine in part.engines),
        windows=parts[0].windows,
        loadgen=tuple(line for part in parts for line in part.loadgen),
        left_out=sum(part.left_out for part in parts),
        accuracies=tuple(accuracies.values()),
    )


def point_of(lane: Lane) -> tuple[str, str, str, str, int, int]:
    """What two results of one point have in common: model, mode, device, scope, batch size and requests in flight."""
    return lane.model, lane.mode, lane.device, lane.scope, lane.batch, lane.concurrency


def _load(source: Path) -> Results:
    directory, rows_file = (source.parent, source) if source.is_file() else (source, source / store.ROWS)
    if not rows_file.is_file() and not any((directory / name).is_file() for name in (store.RUN, store.LOADGEN)):
        raise NotFoundError(f"{source} holds no results: neither {store.ROWS} nor {store.RUN} is there")
    rows, accuracies, left_out, scripts = [], [], 0, False
    for number, value in enumerate(store.read_lines(rows_file), 1):
        try:
            if is_accuracy_row(value):
                accuracies.append(accuracy_row(value))
                continue
            if not is_script_row(value):
                rows.append(Row.from_json(value))
                continue
            scripts = True
            made = suite_row(value)
            if made is None:
                left_out += 1
            else:
                rows.append(Row.from_json(made))
        except (KeyError, InvalidArgumentError) as error:
            why = error.message if isinstance(error, InvalidArgumentError) else f"key {error.args[0]!r} is missing"
            raise InvalidArgumentError(f"{rows_file.name} line {number}: {why}") from error
    # The samples of a script's collector have a form of their own.
    samples = [sample for sample in store.read_lines(directory / store.TELEMETRY) if "time" in sample and not scripts]
    return Results(
        rows=tuple(rows),
        not_run=tuple(NotRun.from_json(value) for value in store.read_lines(directory / store.NOT_RUN)),
        environments={key: suite_environment(facts) for key, facts in _object(directory / store.ENVIRONMENTS).items()},
        run=_object(directory / store.RUN),
        phases=tuple(store.read_lines(directory / store.PHASES)),
        samples=tuple(samples),
        engines=tuple(store.read_lines(directory / store.ENGINES)),
        windows=tuple(store.read_lines(directory / store.WINDOWS)),
        loadgen=tuple(store.read_lines(directory / store.LOADGEN)),
        left_out=left_out,
        accuracies=tuple(accuracies),
    )


def _order(run: Mapping[str, Any], lanes: list[Lane]) -> Any:
    """Sorts as the suite lists models and modes; what it does not list comes last, as it appeared."""
    suite = run.get("suite", {})
    models = [model["name"] for model in suite.get("models", ())] + [lane.model for lane in lanes]
    modes = [mode["name"] for mode in suite.get("modes", ())] + [lane.mode for lane in lanes]

    def key(row: Row) -> tuple[int, int, str, str, int, int]:
        lane = row.lane
        return models.index(lane.model), modes.index(lane.mode), lane.device, lane.scope, lane.batch, lane.concurrency

    return key


def _object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"{path.name}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path.name}: expected a JSON object")
    return value
