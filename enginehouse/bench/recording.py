"""Turning windows into rows and phases on disk, the same way for every scope."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from enginehouse.bench.environment import Environment
from enginehouse.bench.interleave import Outcome
from enginehouse.bench.rows import Lane, NotRun, Row
from enginehouse.bench.seams import Engine, Progress
from enginehouse.bench.statistics import Window, summarize
from enginehouse.bench.store import ResultStore
from enginehouse.bench.suite import Suite
from enginehouse.bench.telemetry import TelemetryRecorder
from enginehouse.errors import EnginehouseError


def utc(seconds: float | None = None) -> str:
    """Seconds since the epoch (now by default) as ISO 8601 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Measured:
    """What a lane's row says beside its windows. `own` are the benchmark's processes on the lane's device."""

    engine: Engine
    environment: Environment
    warmup_seconds: float | None = None
    gpus: int | None = None
    own: frozenset[int] = frozenset()


@dataclass
class Recording:
    """What every part of a run writes to."""

    suite: Suite
    store: ResultStore
    telemetry: TelemetryRecorder
    progress: Progress
    command: str | None = None
    new_rows: int = 0

    @contextmanager
    def phase(self, name: str, kind: str, **facts: str | int) -> Iterator[None]:
        """Mark a phase of the run: `kind` is "optimize", "calibrate", "build", "load", "warm-up" or "measure"."""
        started, interrupted = time.time(), True
        self.progress.phase(name)
        try:
            yield
            interrupted = False
        except EnginehouseError:
            interrupted = False
            raise
        finally:
            marks = {"interrupted": True} if interrupted else {}
            self.store.add_phase({"name": name, "kind": kind, "start": utc(started), "end": utc(), **facts, **marks})

    def window(self, lane: Lane, round_id: str, index: int, window: Window) -> None:
        """Keep a window: the raw material of its row."""
        self.progress.window(str(lane), index, window.inferences_per_second)
        cpu = {} if window.cpu_ns is None else {"cpu_ms": window.cpu_ns / window.inferences / 1e6}
        self.store.add_window({
            "model": lane.model, "mode": lane.mode, "device": lane.device, "batch": lane.batch, "scope": lane.scope,
            "concurrency": lane.concurrency, "round": round_id, "index": index, "start": utc(window.started),
            "end": utc(window.ended), "inferences_per_second": window.inferences_per_second, "calls":
            len(window.latencies_ns),
            "latency_ms_mean": sum(window.latencies_ns) / len(window.latencies_ns) / 1e6, **cpu,
        })  # fmt: skip

    def stage(self, name: str, kind: str, started: float, ended: float, **facts: str | int) -> None:
        """Note a stretch that others told of, such as a job's calibration; seconds since the epoch."""
        self.store.add_phase({"name": name, "kind": kind, "start": utc(started), "end": utc(ended), **facts})

    def rows(self, outcomes: Sequence[Outcome[Lane]], measured: dict[Lane, Measured], round_id: str) -> None:
        """Write a round's rows, all at once, and its failures."""
        rows = []
        for outcome in outcomes:
            if outcome.error is not None or not outcome.windows:
                self.not_run([outcome.lane], outcome.error or EnginehouseError("nothing was measured"))
            else:
                rows.append(self._row(outcome, measured[outcome.lane], round_id))
        for row in rows:
            self.store.add_environment(row.environment, measured[row.lane].environment.to_json())
        self.store.add_rows(rows)
        self.new_rows += len(rows)
        for row in rows:
            self.progress.row(row)

    def not_run(self, lanes: Iterable[Lane], error: EnginehouseError) -> None:
        entries = [NotRun(lane, error.message, utc(), error.reason) for lane in lanes if not self.store.has_row(lane)]
        if entries:
            self.store.add_not_run(entries)
            for entry in entries:
                self.progress.not_run(entry)

    def _row(self, outcome: Outcome[Lane], measured: Measured, round_id: str) -> Row:
        summary = summarize(outcome.windows, self.suite.measure.agreement)
        row = Row(
            lane=outcome.lane,
            inferences_per_second=summary.inferences_per_second,
            latency_ms=summary.latency,
            interval=summary.interval,
            stable=summary.stable,
            environment=measured.environment.digest,
            time=utc(),
            round=round_id,
            windows=summary.windows,
            calls=summary.calls,
            cpu_ms=summary.cpu_ms,
            confidence=summary.confidence,
            warmup_seconds=measured.warmup_seconds,
            gpus=measured.gpus,
            accuracy=measured.engine.accuracy,
            engine_key=measured.engine.key,
            command=self.command,
        )
        spans = [(window.started, window.ended) for window in outcome.last_windows]
        return replace(row, **dataclasses.asdict(self.telemetry.means(outcome.lane.device, spans, measured.own)))
