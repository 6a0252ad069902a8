"""A results directory, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.bench import store
from enginehouse.bench.rows import Lane, NotRun, Row
from enginehouse.bench.telemetry import timestamp
from enginehouse.errors import InvalidArgumentError, NotFoundError


@dataclass(frozen=True)
class Results:
    """What a run left: rows in the order of suite and batch, the rest as JSON objects."""

    rows: tuple[Row, ...]
    not_run: tuple[NotRun, ...]
    environments: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    phases: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    engines: tuple[Mapping[str, Any], ...]
    windows: tuple[Mapping[str, Any], ...] = ()
    loadgen: tuple[Mapping[str, Any], ...] = ()

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


def load_results(directory: Path) -> Results:
    """Read a results directory.

    Raises:
        NotFoundError: it is none: it has neither rows nor a run nor LoadGen's results.
        InvalidArgumentError: a file in it cannot be read; names the file.
    """
    if not any((directory / name).is_file() for name in (store.ROWS, store.RUN, store.LOADGEN)):
        raise NotFoundError(f"{directory} holds no results: neither {store.ROWS} nor {store.RUN} is there")
    newest: dict[Lane, Row] = {}
    for number, value in enumerate(store.read_lines(directory / store.ROWS), 1):
        try:
            row = Row.from_json(value)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{store.ROWS} line {number}: {error.message}") from error
        newest[row.lane] = row  # the same lane measured again replaces
    run = _object(directory / store.RUN)
    return Results(
        rows=tuple(sorted(newest.values(), key=_order(run, [row.lane for row in newest.values()]))),
        not_run=tuple(NotRun.from_json(value) for value in store.read_lines(directory / store.NOT_RUN)),
        environments=_object(directory / store.ENVIRONMENTS),
        run=run,
        phases=tuple(store.read_lines(directory / store.PHASES)),
        samples=tuple(store.read_lines(directory / store.TELEMETRY)),
        engines=tuple(store.read_lines(directory / store.ENGINES)),
        windows=tuple(store.read_lines(directory / store.WINDOWS)),
        loadgen=tuple(store.read_lines(directory / store.LOADGEN)),
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
