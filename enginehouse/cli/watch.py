"""A job as it runs: a live table of its stages on a terminal, plain lines elsewhere. Ctrl-C asks it to stop."""

from __future__ import annotations

import time

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from enginehouse.cli.output import err, say
from enginehouse.client import Job
from enginehouse.client.values import JobEvent, JobView, StageView
from enginehouse.errors import CancelledError

_STYLES = {"succeeded": "green", "reused": "cyan", "running": "yellow", "failed": "red", "cancelled": "magenta"}


class Display:
    """Told of each event; `show` is what to draw."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.state = "queued"
        self.stages: dict[str, StageView] = {}
        self._started: dict[str, float] = {}

    def update(self, event: JobEvent) -> str | None:
        """Take an event; the line that it is worth where nothing is live, if any."""
        line = None
        if event.state != self.state and event.stage is None:
            line = f"{self.job}: {event.state}"
        self.state = event.state
        stage = event.stage
        if stage is not None:
            before = self.stages.get(stage.name)
            self.stages[stage.name] = stage
            self._started.setdefault(stage.name, time.monotonic())
            if before is None or before.state != stage.state:
                took = f" in {stage.seconds:.1f} s" if stage.seconds else ""
                note = f": {stage.message}" if stage.message else ""
                line = f"{stage.name}: {stage.state}{took}{note}"
        return line

    def known(self, view: JobView) -> None:
        """Take the stages that are not begun from the job itself."""
        for stage in view.stages:
            self.stages.setdefault(stage.name, stage)

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, show_header=False)
        for stage in self.stages.values():
            style = _STYLES.get(stage.state, "dim")
            bar = ProgressBar(total=1.0, completed=min(1.0, stage.fraction), width=20)
            table.add_row(
                Text(stage.name, no_wrap=True),
                Text(stage.state, style=style),
                bar if stage.state == "running" else Text(""),
                Text(self._seconds(stage)),
                Text(stage.message, overflow="ellipsis", no_wrap=True, style="dim"),
            )
        return Group(Text(f"{self.job}: {self.state}"), table)

    def _seconds(self, stage: StageView) -> str:
        if stage.seconds is not None:
            return f"{stage.seconds:.1f} s"
        if stage.state == "running":
            return f"{time.monotonic() - self._started.get(stage.name, time.monotonic()):.0f} s"
        return ""


def follow(job: Job) -> JobView:
    """Show a job until it ends. The first Ctrl-C asks it to stop and goes on showing; the second leaves it.

    Raises:
        CancelledError: it was cancelled.
        EnginehouseError: what it failed with.
    """
    display = Display(job.id)
    display.known(job.metadata())
    after = 0
    asked = False
    console = err()
    with Live(display, console=console, refresh_per_second=8, transient=False) if console.is_terminal else _Plain():
        while True:
            try:
                for event in job.events(after):
                    after = event.sequence
                    line = display.update(event)
                    if line is not None and not console.is_terminal:
                        say(line)
                    if event.job is not None:
                        return _ended(event.job)
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                console.print(Text(f"asking {job.id} to stop; Ctrl-C again leaves it to itself"))
                job.cancel()


def _ended(view: JobView) -> JobView:
    if view.error is not None:
        failed = next((stage.name for stage in view.stages if stage.state == "failed"), None)
        if failed is not None and not isinstance(view.error, CancelledError):
            say(f'the log: enginehouse jobs log {view.id} "{failed}"')
        raise view.error
    return view


class _Plain:
    """Stands for the live display where there is none."""

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None
