"""A loaded model: one queue, and one thread for each instance."""

from __future__ import annotations

import functools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from enginehouse_worker.backends.base import Backend, Instance, LoadedEngine, PipelinedInstance, TensorSpec
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json
from enginehouse_worker.runner.measure import random_inputs


class Job(Protocol):
    """Work for one instance. Exactly one of `run` and `begin` is called, or `fail` without either, once."""

    @property
    def id(self) -> int: ...

    def run(self, instance: Instance) -> None:
        """Do it; whatever it raises becomes `fail`'s error."""

    def begin(self, instance: PipelinedInstance) -> Callable[[], None] | None:
        """Begin it; what comes back ends it, None when it is done. Whatever either raises becomes `fail`'s error."""

    def fail(self, error: WorkerError) -> None: ...


def as_worker_error(error: BaseException, what: str) -> WorkerError:
    """The error that a caller hears about for any exception of a framework."""
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, MemoryError):
        return WorkerError("RESOURCE_EXHAUSTED", f"{what}: out of memory; use a smaller batch or fewer instances")
    if isinstance(error, UnicodeDecodeError):
        return WorkerError(
            "INVALID_ARGUMENT", f"{what}: a BYTES element is not UTF-8, which this backend needs: {error}"
        )
    return WorkerError("INTERNAL", f"{what}: {type(error).__name__}: {error}")


class JobQueue:
    """First in, first out; a job can be taken back until an instance has begun it.

    A queue in C wakes one thread without a line of Python; a job that was taken back stays in it, and is passed over.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # Jobs not begun and not taken back, by identity: whoever pops one has it.
        self._waiting: dict[int, Job] = {}
        self._closing = threading.Lock()
        self._closed = False

    def put(self, job: Job) -> None:
        """Queue a job.

        Raises:
            WorkerError: UNAVAILABLE when the model is being unloaded.
        """
        with self._closing:
            if self._closed:
                raise WorkerError("UNAVAILABLE", "the model is being unloaded")
            self._waiting[id(job)] = job
            self._jobs.put(job)

    def take(self) -> Job | None:
        """Wait for the next job; None when the queue is closed and empty."""
        while (job := self._jobs.get()) is not None:
            if self._waiting.pop(id(job), None) is not None:
                return job
        self._jobs.put(None)  # for the other instances
        return None

    def remove(self, identifier: int) -> Job | None:
        """Take back the job with that id, if it has not begun."""
        for job in list(self._waiting.values()):
            if job.id == identifier:
                return self._waiting.pop(id(job), None)
        return None

    def close(self) -> None:
        """Take no more jobs; those queued still run."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)


class Model:
    """A loaded engine and its instances."""

    def __init__(self, key: str, engine: LoadedEngine, max_batch_size: int) -> None:
        self.key = key
        self.engine = engine
        self.max_batch_size = max_batch_size
        self.signature = engine.signature
        self.inputs: Mapping[str, TensorSpec] = {t.name: t for t in self.signature.inputs}
        self.outputs: Mapping[str, TensorSpec] = {t.name: t for t in self.signature.outputs}
        self.queue = JobQueue()
        self._threads: list[threading.Thread] = []

    def start(self, instances: int, warmup: Sequence[int]) -> None:
        """Create the instances, each in its own thread, and run the warm-up batches on each.

        Raises:
            WorkerError: an instance could not be made or a warm-up failed; `close` is still the caller's to call.
        """
        outcomes: list[WorkerError | None] = []
        reported = threading.Semaphore(0)

        def report(error: WorkerError | None) -> None:
            outcomes.append(error)
            reported.release()

        for index in range(instances):
            thread = threading.Thread(
                target=self._serve, args=(tuple(warmup), report), name=f"{self.key}#{index}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        for _ in range(instances):
            reported.acquire()
        for error in outcomes:
            if error is not None:
                raise error

    def facts(self) -> dict[str, int]:
        """What only some backends know: what the engine takes of the device, and batches an instance takes at once."""
        known = {
            "device_memory_bytes": getattr(self.engine, "device_memory_bytes", None),
            "concurrency": getattr(self.engine, "concurrency", None),
        }
        return {name: int(value) for name, value in known.items() if value is not None}

    def close(self) -> None:
        """Let queued jobs finish, then free everything."""
        self.queue.close()
        for thread in self._threads:
            thread.join()
        self.engine.close()

    def _serve(self, warmup: Sequence[int], report: Callable[[WorkerError | None], None]) -> None:
        # Contexts of some frameworks belong to the thread that made them, so all of an instance's life is in one.
        instance: Instance | None = None
        try:
            instance = self.engine.new_instance()
            for batch in warmup:
                instance.run(random_inputs(self.signature, batch, seed=0), ())
        except BaseException as error:
            traceback.print_exc()
            if instance is not None:
                instance.close()
            report(as_worker_error(error, f"{self.key}: creating and warming up an instance"))
            return
        report(None)
        if isinstance(instance, PipelinedInstance):
            self._pipeline(instance)
        else:
            while (job := self.queue.take()) is not None:
                self._attempt(job, functools.partial(job.run, instance))
        instance.close()

    def _pipeline(self, instance: PipelinedInstance) -> None:
        """Begin jobs as long as the ring has room; a second thread waits for them, so that no job waits for a wait."""
        begun: queue.SimpleQueue[tuple[Job, Callable[[], None]] | None] = queue.SimpleQueue()
        room = threading.Semaphore(instance.ring)

        def finish() -> None:
            while (item := begun.get()) is not None:
                self._attempt(*item)
                del item  # it holds views of segments
                room.release()

        finisher = threading.Thread(target=finish, name=f"{threading.current_thread().name}.finish", daemon=True)
        finisher.start()
        while True:
            # Room before a job: a job that this instance cannot begin yet is left to the others.
            room.acquire()
            job = self.queue.take()
            if job is None:
                break
            end = self._attempt(job, functools.partial(job.begin, instance))
            if end is None:
                room.release()
            else:
                begun.put((job, end))
            del job, end
        begun.put(None)
        finisher.join()

    def _attempt(self, job: Job, step: Callable[[], Any]) -> Any:
        """What a step of a job returns; None when it raised, and the job has failed."""
        try:
            return step()
        except BaseException as error:
            if not isinstance(error, WorkerError | UnicodeDecodeError):
                traceback.print_exc()
            job.fail(as_worker_error(error, f"running {self.key}"))
            return None


def load_model(
    key: str,
    directory: Path,
    find_backend: Callable[[str], Backend],
    *,
    device: str,
    instances: int,
    warmup: Sequence[int],
    options: Mapping[str, Any],
) -> Model:
    """Load an engine directory and start its instances.

    Raises:
        WorkerError: the directory is no engine, this environment lacks its backend, or the framework refused it.
    """
    if instances < 1:
        raise WorkerError("INVALID_ARGUMENT", f"{key}: {instances} instances; expected at least 1")
    if not directory.is_dir():
        raise WorkerError("NOT_FOUND", f"{key}: there is no engine directory {directory}")
    manifest = read_json(directory / "engine.json")
    backend = find_backend(str(manifest.get("backend", "")))
    engine = backend.load(directory, device=device, options=options)
    try:
        model = Model(key, engine, int(manifest.get("max_batch_size") or 0))
    except BaseException:
        engine.close()
        raise
    limit = model.max_batch_size if model.signature.batched else 1
    for batch in warmup:
        if batch < 1 or (limit and batch > limit):
            engine.close()
            raise WorkerError("INVALID_ARGUMENT", f"{key}: warm-up batch {batch}; expected 1 to {limit}")
    try:
        model.start(instances, warmup)
    except BaseException:
        model.close()
        raise
    return model


def resident_bytes() -> int:
    """This process's resident memory, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC, which every process of the machine shares."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
