"""Running a suite: engines from the optimizer, lanes measured scope by scope, results kept whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.bench import package_version
from enginehouse.bench.environment import Machine, read_machine
from enginehouse.bench.host import HostBench, Loadable
from enginehouse.bench.plan import Contender, contenders, lanes, wanted_gpus, why_not
from enginehouse.bench.recording import Recording, utc
from enginehouse.bench.rows import Lane
from enginehouse.bench.seams import Engine, Progress, RunSummary, Seams, SilentProgress
from enginehouse.bench.served import Servable, ServedBench
from enginehouse.bench.store import TELEMETRY, TELEMETRY_CSV, ResultStore
from enginehouse.bench.suite import ModelSpec, Suite
from enginehouse.bench.telemetry import TelemetryRecorder, write_telemetry_csv
from enginehouse.errors import (
    EnginehouseError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
    error_for,
)

if TYPE_CHECKING:
    from enginehouse.client import AsyncClient


async def run_suite(
    suite: Suite,
    directory: Path,
    *,
    client: AsyncClient,
    resume: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    engine_cache: Path | None = None,
) -> RunSummary:
    """Run a suite on this machine and write its results directory.

    Run it where inference happens: rows describe this machine. Modes that it cannot run become "not run" entries
    with their reason, and never fail the run. Cancelling (Ctrl-C) keeps every finished row; `resume` goes on from
    there.

    Args:
        suite: from `enginehouse.bench.suite.load_suite`.
        directory: for the results; must hold none, unless `resume`.
        client: the SDK, connected to the optimizer, and to inference and telemetry where the suite needs them.
        resume: keep the rows that `directory` has and measure the others.
        progress: told of the run's course.
        command: the command line, for the rows.
        engine_cache: where engines are downloaded to; `engines` in `directory` by default.

    Returns:
        how it ended.

    Raises:
        FailedPreconditionError: the directory holds results already, or none to resume, or another suite's.
        InvalidArgumentError: the directory's files cannot be read.
        NotFoundError: a model of the suite is not there; nothing is written then.
        UnavailableError: no optimizer answers, or for nothing but the served scope no inference service; nothing is
            written then. Or the optimizer left: finished rows are kept.
        ResourceExhaustedError: the disk is full; finished rows are kept.
    """
    from enginehouse.bench.sdk import connect

    ready = await client.ready()
    if not ready["optimizer"]:
        raise UnavailableError(
            f"no optimizer serves at {client.addresses.optimizer}, and a benchmark's engines come from it: "
            "`enginehouse up` starts one"
        )
    if not ready["inference"] and set(suite.scopes) == {"served"}:
        raise UnavailableError(
            f"no inference service serves at {client.addresses.inference}, and the suite measures nothing but the "
            "served scope: `enginehouse up` starts one"
        )
    seams = connect(client, suite, progress or SilentProgress())
    return await execute(suite, directory, seams, resume=resume, command=command, engine_cache=engine_cache)


async def execute(
    suite: Suite,
    directory: Path,
    seams: Seams,
    *,
    resume: bool = False,
    command: str | None = None,
    engine_cache: Path | None = None,
    machine: Machine | None = None,
) -> RunSummary:
    """`run_suite` on any implementation of its seams; `machine` is read when it is None. Raises the same."""
    known: Machine = await asyncio.to_thread(read_machine) if machine is None else machine
    await _check_models(suite, seams)
    started = {"started": utc(), "enginehouse": package_version(), **({"command": command} if command else {})}
    store = (ResultStore.resume if resume else ResultStore.create)(directory, suite, started)
    recorder = TelemetryRecorder(seams.telemetry, store.telemetry_path)
    recording = Recording(suite, store, recorder, seams.progress, command)
    status = "interrupted"
    await recorder.start()
    try:
        run = _Run(suite, seams, recording, known, engine_cache or directory / "engines")
        await run.all()
        status = "complete"
    finally:
        await recorder.stop()
        # Where the disk is full this fails again; what ended the run is what to tell of.
        with contextlib.suppress(ResourceExhaustedError):
            write_telemetry_csv(directory / TELEMETRY, directory / TELEMETRY_CSV)
            missing = {"telemetry_missing": recorder.missing} if recorder.missing else {}
            store.update_run(status=status, ended=utc(), **missing)
        summary = RunSummary(directory, status, store.rows_count(), recording.new_rows, store.not_run_entries())
        seams.progress.finished(summary)
    return summary


async def _check_models(suite: Suite, seams: Seams) -> None:
    """Have every model of the suite registered, before hours go by.

    Raises:
        EnginehouseError: one is not there; names it as the suite does.
    """
    for index, model in enumerate(suite.models):
        try:
            await seams.engines.check(model)
        except EnginehouseError as error:
            message = f"suite {suite.name!r}, models[{index}] {model.name!r} ({model.source}): {error.message}"
            raise error_for(error.code, message, details=error.details) from error


class _Run:
    """One run of a suite."""

    def __init__(self, suite: Suite, seams: Seams, recording: Recording, machine: Machine, engine_cache: Path) -> None:
        self._suite, self._seams, self._recording, self._machine = suite, seams, recording, machine
        self._cache = engine_cache
        self._contenders = contenders(suite, machine.gpus)

    async def all(self) -> None:
        wanted = [
            lane
            for model in self._suite.models
            for contender in self._contenders
            for lane in self._lanes(model, contender)
        ]
        done = sum(self._recording.store.has_row(lane) for lane in wanted)
        self._seams.progress.started(len(wanted), done)
        for model in self._suite.models:
            await self._model(model)

    def _lanes(self, model: ModelSpec, contender: Contender) -> tuple[Lane, ...]:
        return lanes(self._suite, model, contender)

    async def _model(self, model: ModelSpec) -> None:
        ready: dict[Contender, Engine] = {}
        missing: dict[Contender, Sequence[Lane]] = {}
        workers = self._seams.workers
        for contender in self._contenders:
            left = [lane for lane in self._lanes(model, contender) if not self._recording.store.has_row(lane)]
            if not left:
                continue
            error = why_not(
                contender, self._machine.gpus, workers.environment if workers else None, [lane.scope for lane in left]
            )
            if error is None:
                engine = await self._engine(model, contender)
                if isinstance(engine, EnginehouseError):
                    error = engine
                else:
                    ready[contender], missing[contender] = engine, left
            if error is not None:
                self._recording.not_run(left, error)
        await self._host(model, ready, missing)
        await self._served(model, ready, missing)

    async def _engine(self, model: ModelSpec, contender: Contender) -> Engine | EnginehouseError:
        """The contender's engine, or why there is none."""
        name = f"optimize {model.name} {contender.mode.name}"
        try:
            with self._recording.phase(name, "optimize", model=model.name, mode=contender.mode.name):
                engine = await self._seams.engines.engine(model, contender.mode, self._suite)
        except EnginehouseError as error:
            if isinstance(error, UnavailableError) and not await self._seams.engines.reachable():
                raise UnavailableError(
                    f"the optimizer left while {model.name} {contender.mode.name} was made: {error.message}. "
                    "Finished rows are kept: go on with --resume when it is back"
                ) from error
            return error
        self._stages(model, contender, engine)
        self._recording.store.add_engine({
            "model": model.name, "mode": contender.mode.name, "device": contender.device, "name": engine.name,
            "key": engine.key, "backend": engine.backend, "backend_version": engine.backend_version,
            "precision": engine.precision, "built_for": engine.device_product,
            "calibration_digest": engine.calibration_digest,
        })  # fmt: skip
        return engine

    def _stages(self, model: ModelSpec, contender: Contender, engine: Engine) -> None:
        """Mark a job's calibration and build among the run's phases: what the device did then is part of the answer."""
        for stage in self._seams.engines.stages(engine):
            kind = next((kind for kind in ("calibrate", "build") if stage.name.startswith(kind)), None)
            if kind is not None:
                self._recording.stage(
                    f"{kind} {model.name} {contender.mode.name}", kind, stage.started, stage.ended,
                    model=model.name, mode=contender.mode.name,
                )  # fmt: skip

    async def _host(
        self, model: ModelSpec, ready: dict[Contender, Engine], missing: dict[Contender, Sequence[Lane]]
    ) -> None:
        wanted = _of_scopes(("engine", "host"), missing)
        if not wanted or self._seams.workers is None:
            return
        loadables = []
        with self._recording.phase(f"download {model.name}", "load", model=model.name):
            for contender, left in wanted.items():
                try:
                    path = await self._seams.engines.download(ready[contender], self._cache)
                except EnginehouseError as error:
                    self._recording.not_run(left, error)
                else:
                    loadables.append(Loadable(contender, ready[contender], path))
        gpus = wanted_gpus(self._suite, self._machine.gpus)
        bench = HostBench(self._seams.workers, self._recording, self._machine, gpus)
        await bench.run(model.name, loadables, wanted)

    async def _served(
        self, model: ModelSpec, ready: dict[Contender, Engine], missing: dict[Contender, Sequence[Lane]]
    ) -> None:
        wanted = _of_scopes(("served",), missing)
        if not wanted:
            return
        if self._seams.serving is None or not await self._seams.serving.reachable():
            error: EnginehouseError = UnavailableError("no inference service answers: `enginehouse up` starts one")
            for left in wanted.values():
                self._recording.not_run(left, error)
            return
        servables = []
        for contender, left in wanted.items():
            engine = ready[contender]
            if engine.device_kind != contender.mode.device:
                kind = f"the engine is for the {engine.device_kind}, the mode for the {contender.mode.device}"
                self._recording.not_run(left, FailedPreconditionError(kind))
                continue
            servables.append(Servable(contender, engine, served_name(model.name, contender.mode.name)))
        await ServedBench(self._seams.serving, self._recording, self._machine).run(model.name, servables, wanted)


def served_name(model: str, mode: str) -> str:
    """A name for a benchmark's model on the inference service: a valid id of at most 63 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", f"bench-{model}-{mode}".lower())[:63]


def _of_scopes(scopes: Sequence[str], missing: dict[Contender, Sequence[Lane]]) -> dict[Contender, Sequence[Lane]]:
    of = {contender: [lane for lane in left if lane.scope in scopes] for contender, left in missing.items()}
    return {contender: left for contender, left in of.items() if left}
