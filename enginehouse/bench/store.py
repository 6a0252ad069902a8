"""A results directory: what is in it, appended so that an interruption never costs what was finished."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from enginehouse.bench.rows import Lane, NotRun, Row, present, to_line
from enginehouse.bench.suite import Suite
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError

ROWS = "rows.jsonl"
NOT_RUN = "not_run.jsonl"
WINDOWS = "windows.jsonl"
PHASES = "phases.jsonl"
ENGINES = "engines.jsonl"
LOADGEN = "loadgen.jsonl"
ENVIRONMENTS = "environments.json"
TELEMETRY = "telemetry.jsonl"
TELEMETRY_CSV = "telemetry.csv"
RUN = "run.json"


def append_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines with one write to an append-only descriptor, so that readers and crashes see all or none of
    a line.

    Raises:
        ResourceExhaustedError: the disk is full; nothing was appended.
    """
    data = "".join(to_line(value) for value in values).encode()
    if not data:
        return
    with _room(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)  # a part of it may fit
            raise
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a whole file so that a reader sees the old or the new one.

    Raises:
        ResourceExhaustedError: the disk is full; the old one is still there.
    """
    temporary = path.with_name(path.name + ".part")
    with _room(path):
        try:
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _room(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhaustedError(
            f"no space left on the disk of {path.parent}: {path.name} could not be written. What was finished before "
            "is kept: make room, and go on with --resume",
            details={"path": str(path)},
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, none when there is no file. A last line that was cut off is left out.

    Raises:
        InvalidArgumentError: a complete line is not a JSON object.
    """
    if not path.is_file():
        return []
    values = []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty or cut off
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidArgumentError(f"{path.name} line {number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidArgumentError(f"{path.name} line {number}: expected a JSON object")
        values.append(value)
    return values


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


class ResultStore:
    """Writes one results directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._rows: set[Lane] = set()
        self._not_run: dict[Lane, NotRun] = {}
        self._environments: dict[str, Any] = {}
        self._engines: list[dict[str, Any]] = []
        self._run: dict[str, Any] = {}

    @classmethod
    def create(cls, directory: Path, suite: Suite, run: Mapping[str, Any]) -> ResultStore:
        """Start a results directory.

        Raises:
            FailedPreconditionError: it holds results already.
        """
        if (directory / RUN).exists() or (directory / ROWS).exists():
            raise FailedPreconditionError(f"{directory} holds results already: resume them, or name another directory")
        directory.mkdir(parents=True, exist_ok=True)
        store = cls(directory)
        store.update_run(suite=suite.to_json(), suite_digest=suite.digest, **run)
        return store

    @classmethod
    def resume(cls, directory: Path, suite: Suite, run: Mapping[str, Any]) -> ResultStore:
        """Go on with a results directory; rows that exist are kept.

        Raises:
            FailedPreconditionError: there is nothing to resume, or it was another suite.
        """
        path = directory / RUN
        if not path.is_file():
            raise FailedPreconditionError(f"{directory} holds no results to resume: {RUN} is missing")
        store = cls(directory)
        store._run = json.loads(path.read_text("utf-8"))
        if store._run.get("suite_digest") != suite.digest:
            raise FailedPreconditionError(
                f"{directory} holds results of another suite or of another version of suite {suite.name!r}: "
                "resume with the suite it was started with, or name another directory"
            )
        for name in (ROWS, NOT_RUN, WINDOWS, PHASES, ENGINES, TELEMETRY):
            _cut_torn_line(directory / name)
        store._rows = {Row.from_json(value).lane for value in read_lines(directory / ROWS)}
        store._not_run = {(entry := NotRun.from_json(v)).lane: entry for v in read_lines(directory / NOT_RUN)}
        store._engines = read_lines(directory / ENGINES)
        if (directory / ENVIRONMENTS).is_file():
            store._environments = json.loads((directory / ENVIRONMENTS).read_text("utf-8"))
        store.update_run(resumed=[*store._run.get("resumed", []), dict(run)], status="running")
        return store

    @property
    def telemetry_path(self) -> Path:
        return self.directory / TELEMETRY

    def has_row(self, lane: Lane) -> bool:
        return lane in self._rows

    def rows_count(self) -> int:
        return len(self._rows)

    def not_run_entries(self) -> tuple[NotRun, ...]:
        return tuple(self._not_run.values())

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Append finished rows, all in one write."""
        added = list(rows)
        append_lines(self.directory / ROWS, [row.to_json() for row in added])
        self._rows.update(row.lane for row in added)
        if any(self._not_run.pop(row.lane, None) for row in added):
            self._write_not_run()

    def add_not_run(self, entries: Iterable[NotRun]) -> None:
        """Record lanes that could not be measured; an entry of the same lane is replaced."""
        self._not_run.update((entry.lane, entry) for entry in entries)
        self._write_not_run()

    def add_environment(self, digest: str, environment: Mapping[str, Any]) -> None:
        if digest not in self._environments:
            self._environments[digest] = present(dict(environment))
            replace_text(self.directory / ENVIRONMENTS, json.dumps(self._environments, indent=2) + "\n")

    def add_engine(self, engine: Mapping[str, Any]) -> None:
        value = present(dict(engine))
        if value not in self._engines:
            self._engines.append(value)
            append_lines(self.directory / ENGINES, [value])

    def add_window(self, window: Mapping[str, Any]) -> None:
        append_lines(self.directory / WINDOWS, [present(dict(window))])

    def add_phase(self, phase: Mapping[str, Any]) -> None:
        append_lines(self.directory / PHASES, [present(dict(phase))])

    def update_run(self, **values: Any) -> None:
        """Change what `run.json` says of the run."""
        self._run.update(values)
        replace_text(self.directory / RUN, json.dumps(self._run, indent=2) + "\n")

    def _write_not_run(self) -> None:
        replace_text(self.directory / NOT_RUN, "".join(to_line(entry.to_json()) for entry in self._not_run.values()))
