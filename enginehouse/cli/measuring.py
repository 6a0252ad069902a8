"""A benchmark as it runs: a bar, the phase and the last window on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from enginehouse.cli.output import err

if TYPE_CHECKING:
    from enginehouse.bench.rows import NotRun, Row
    from enginehouse.bench.seams import RunSummary


class Lines:
    """A run's course, a line for each phase and row."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[tuple[str, str, str]] = set()

    def started(self, planned: int, done: int) -> None:
        self.say(f"{planned} rows to measure" + (f", {done} measured before" if done else ""))

    def phase(self, name: str) -> None:
        self.say(name)

    def window(self, lane: str, index: int, inferences_per_second: float) -> None:
        return None

    def row(self, row: Row) -> None:
        flags = [
            word
            for word, on in (
                ("not stable", not row.stable),
                (f"throttled: {', '.join(row.throttle_reasons or ())}", row.throttled),
                (f"{row.other_processes} other processes on the GPU", row.other_processes),
            )
            if on
        ]
        low, high = row.interval
        text = f"{row.inferences_per_second:.4g} inferences/s ({low:.4g} to {high:.4g})"
        self.say(f"  {row.lane}: {text}" + (f" ({'; '.join(flags)})" if flags else ""))

    def not_run(self, entry: NotRun) -> None:
        told = (entry.lane.model, entry.lane.mode, entry.reason)
        if told not in self._told:  # once for all its batch sizes
            self._told.add(told)
            self.say(f"  not run: {entry.lane.model} {entry.lane.mode}: {entry.reason}")

    def finished(self, summary: RunSummary) -> None:
        self.say(f"{summary.status}: {summary.rows} rows in {summary.directory}, {len(summary.not_run)} not run")
        if summary.status != "complete":
            self.say("finished rows are kept; the same command with --resume measures the others")

    def say(self, line: str) -> None:
        self._console.print(Text(line))


class Bar(Lines):
    """The same above a bar of rows, with what is measured now below it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("rows", total=None)
        self._phase = self._window = ""

    def __rich__(self) -> Group:
        now = [
            Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in (self._phase, self._window) if text
        ]
        return Group(self._progress, *now)

    def started(self, planned: int, done: int) -> None:
        super().started(planned, done)
        self._progress.update(self._task, total=planned, completed=done)

    def phase(self, name: str) -> None:
        self._phase, self._window = name, ""

    def window(self, lane: str, index: int, inferences_per_second: float) -> None:
        self._window = f"  {lane}: window {index}, {inferences_per_second:.4g} inferences/s"

    def row(self, row: Row) -> None:
        super().row(row)
        self._progress.advance(self._task)

    def not_run(self, entry: NotRun) -> None:
        super().not_run(entry)
        self._progress.advance(self._task)

    def finished(self, summary: RunSummary) -> None:
        self._phase = self._window = ""
        super().finished(summary)


@contextmanager
def measuring(console: Console | None = None) -> Iterator[Lines]:
    """What to give a run as `progress`; drawn on standard error."""
    console = err() if console is None else console
    if not console.is_terminal:
        yield Lines(console)
        return
    bar = Bar(console)
    with Live(bar, console=console, refresh_per_second=8, transient=True):
        yield bar
