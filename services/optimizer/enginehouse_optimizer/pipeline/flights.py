"""Runs stages: each key once at a time, however many jobs want it, and not at all when its result is stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import structlog

from enginehouse.artifacts import BlobStore, Tree, TreeEntry, digest_json
from enginehouse.errors import DataLossError, EnginehouseError, InternalError, NotFoundError
from enginehouse_optimizer.pipeline.places import StagePlace, StageRun, empty
from enginehouse_optimizer.pipeline.plan import PlannedStage, Upload
from enginehouse_optimizer.pipeline.slots import Demand, Holding, StageQueue, Urgency
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.stage_costs import StageCosts
from enginehouse_optimizer.storage.stage_results import StageResult, StageResults
from enginehouse_optimizer.threads import in_thread

# A log is kept whole up to this; of a longer one, the end.
MAX_LOG_BYTES = 8 << 20

_log = structlog.get_logger("stages")


class Listener(Protocol):
    """Told, in the event loop, what becomes of a stage that a job wants."""

    @property
    def urgency(self) -> Urgency:
        """How soon its job wants it."""

    def waiting(self, message: str) -> None:
        """It cannot start yet, for this reason."""

    def reused(self, log_digest: str) -> None:
        """Its result was stored."""

    def running(self, log: Path) -> None:
        """It runs now, and writes this log."""

    def progress(self, fraction: float, message: str) -> None: ...

    def logged(self, log_digest: str) -> None:
        """It has ended, well or not, and left this log."""

    def measured(self, seconds: float | None, peak_memory_bytes: int | None) -> None:
        """What the run that made its result took, now or when it was stored."""


@dataclass(eq=False)
class _Flight:
    """One run of one key. It ends early when nobody listens any more."""

    task: asyncio.Task[StageResult] | None = None
    listeners: list[Listener] = field(default_factory=list)
    log: Path | None = None
    log_digest: str = ""
    last: tuple[float, str] | None = None
    wait: str = ""

    def urgency(self) -> Urgency:
        """As urgent as the most urgent of the jobs that want it."""
        return min((listener.urgency for listener in self.listeners), default=(0, 0))

    def tell(self, what: Callable[[Listener], None]) -> None:
        for listener in list(self.listeners):
            what(listener)

    def waits(self, message: str) -> None:
        self.wait = message
        self.tell(lambda listener: listener.waiting(message))

    def join(self, listener: Listener) -> None:
        self.listeners.append(listener)
        if self.log is not None:
            listener.running(self.log)
        if self.last is not None:
            listener.progress(*self.last)
        if self.wait:
            listener.waiting(self.wait)


@dataclass(frozen=True)
class _Watcher:
    """Passes on to a flight's listeners what becomes of its run."""

    flight: _Flight
    log: Path
    holding: Holding

    def waits(self, message: str) -> None:
        self.flight.waits(message)

    def runs(self) -> None:
        self.flight.log, self.flight.wait = self.log, ""
        self.flight.tell(lambda listener: listener.running(self.log))

    def progresses(self, fraction: float, message: str) -> None:
        self.flight.last = (fraction, message)
        self.flight.tell(lambda listener: listener.progress(fraction, message))

    def grouped(self, group: int) -> None:
        self.holding.group = group


class StageRunner:
    """The stages of all jobs. `work_dir` is emptied by whoever makes one: no file there survives the service.

    Args:
        places: where stages of an environment run, and the queue for their slots; of the others, `local` says.
    """

    def __init__(
        self,
        results: StageResults,
        costs: StageCosts,
        blobs: ProjectBlobs,
        work_dir: Path,
        local: tuple[StagePlace, StageQueue],
        places: Mapping[str, tuple[StagePlace, StageQueue]] | None = None,
    ) -> None:
        self._results = results
        self._costs = costs
        self._blobs = blobs
        self._work_dir = work_dir
        self._local = local
        self._places = dict(places or {})
        self._flights: dict[tuple[str, str], _Flight] = {}

    async def obtain(
        self, project: str, stage: PlannedStage, outputs: Mapping[str, Tree], listener: Listener
    ) -> StageResult:
        """The result of a stage: stored, of a run in progress, or of a new run.

        Args:
            outputs: for each input that is another stage's output, its files.

        Raises:
            EnginehouseError: the stage failed.
        """
        key = (project, stage.key)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.ensure_future(self._fly(flight, project, stage, outputs))
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        assert flight.task is not None
        flight.join(listener)
        try:
            result = await asyncio.shield(flight.task)
            listener.measured(result.seconds, result.peak_memory_bytes)
            return result
        except asyncio.CancelledError:
            if flight.task.cancelled():  # not we: the run itself
                raise InternalError(f"stage {stage.name!r} was stopped") from None
            raise
        finally:
            flight.listeners.remove(listener)
            if not flight.listeners and not flight.task.done():
                self._landed(key, flight)
                flight.task.cancel()
                await asyncio.wait({flight.task})
            # Whoever waited is told, also one that came, or went, while the stage ended.
            if flight.log_digest:
                listener.logged(flight.log_digest)

    def _landed(self, key: tuple[str, str], flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task is not None and flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # retrieved, also when nobody waits any more

    async def _fly(
        self, flight: _Flight, project: str, stage: PlannedStage, outputs: Mapping[str, Tree]
    ) -> StageResult:
        stored = await self._stored(project, stage.key)
        if stored is not None:
            flight.tell(lambda listener: listener.reused(stored.log_digest))
            return stored
        store = self._blobs.of(project)
        trees = {
            name: await in_thread(_upload_tree, store, source) if isinstance(source, Upload) else outputs[name]
            for name, source in stage.inputs.items()
        }
        subject, size = _subject(stage), sum(tree.size for tree in trees.values())
        demand = Demand(stage.stage, stage.environment, self._costs.expected(stage.environment, subject, size))
        place, queue = self._places.get(stage.environment, self._local)
        async with queue.hold(demand, flight.urgency, flight.waits) as holding:
            result = await self._run(place, flight, project, stage, trees, holding)
        if result.peak_memory_bytes:
            self._costs.record(stage.environment, subject, size, result.peak_memory_bytes)
        return result

    async def _run(
        self,
        place: StagePlace,
        flight: _Flight,
        project: str,
        stage: PlannedStage,
        trees: Mapping[str, Tree],
        holding: Holding,
    ) -> StageResult:
        store = self._blobs.of(project)
        work = self._work_dir / uuid4().hex
        work.mkdir(parents=True)
        log = work / "stage.log"
        log.touch()
        _log.info("stage starts", project=project, stage=stage.name, key=stage.key)
        try:
            watcher = _Watcher(flight, log, holding)
            tree, found = await place.run(StageRun(project, stage, trees, work, log), watcher)
            flight.log_digest = await in_thread(_store_log, store, log)
            result = StageResult(tree, found, flight.log_digest)
            self._results.put(project, stage.key, result)
            _log.info("stage succeeded", project=project, stage=stage.name, seconds=found.get("seconds"))
            return result
        except EnginehouseError as error:
            _log.warning("stage failed", project=project, stage=stage.name, status=error.reason, error=error.message)
            raise
        finally:
            flight.log_digest = flight.log_digest or await in_thread(_store_log, store, log)
            await empty(work)

    async def _stored(self, project: str, key: str) -> StageResult | None:
        result = self._results.get(project, key)
        if result is None:
            return None
        store = self._blobs.of(project)
        try:
            await in_thread(_verify, store, result.tree)
        except (NotFoundError, DataLossError) as error:
            _log.warning("stored result is damaged: the stage runs again", key=key, error=error.message)
            self._results.forget(project, key)
            return None
        self._results.touch(project, key)
        return result


def _verify(store: BlobStore, tree: Tree) -> None:
    for entry in tree.entries:
        store.path(entry.digest)


def _subject(stage: PlannedStage) -> str:
    """What the stage's memory follows from beside the size of its inputs: of one without inputs, its parameters."""
    return stage.stage if stage.inputs else f"{stage.stage} {digest_json(dict(stage.params))}"


def _upload_tree(store: BlobStore, upload: Upload) -> Tree:
    return Tree((TreeEntry(upload.file_name, upload.digest, store.size(upload.digest)),))


def _store_log(store: BlobStore, log: Path) -> str:
    """Keep a log; a log that cannot be kept must not hide how its stage ended."""
    with suppress(OSError, EnginehouseError), log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MAX_LOG_BYTES))
        return store.put_bytes(file.read(MAX_LOG_BYTES))
    return ""


def read_json_file(store: BlobStore, tree: Tree, path: str) -> dict[str, Any]:
    """A JSON object among a stage's files. Reads the disk: call it from a thread.

    Raises:
        InternalError: the stage did not write it, or wrote something else.
    """
    entry = tree.find(path)
    if entry is None:
        raise InternalError(
            f"the stage wrote no {path} (it wrote {', '.join(e.path for e in tree.entries) or 'nothing'})"
        )
    try:
        value = json.loads(store.read_bytes(entry.digest))
    except ValueError as error:
        raise InternalError(f"the stage wrote a {path} that is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InternalError(f"the stage wrote a {path} that is no JSON object")
    return value
