"""Keeps a worker process alive with the engines it should hold."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from enginehouse.errors import EnginehouseError, ResourceExhaustedError, UnavailableError
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.link import InferenceResult, LoadedModel, WorkerProcess
from enginehouse.workers.process import POISONED
from enginehouse.workers.regions import DeviceRegion, Place
from enginehouse.workers.tensors import TensorInput
from enginehouse_inference.devices.hosted import Hosted, SupervisorSettings, convict

_log = structlog.get_logger("worker")

# What may have passed when an engine that was served is loaded again: others took the memory that it needs.
_MAY_PASS = (ResourceExhaustedError, UnavailableError)


class Start(Protocol):
    """`WorkerProcess.start`."""

    async def __call__(
        self, environment: WorkerEnvironment, device: str, log: Callable[[str], None]
    ) -> WorkerProcess: ...


class DeviceWorker:
    """One worker process for one environment on one device.

    It starts when the first engine is wanted. When it dies or hangs, what was in flight fails with UnavailableError and
    a new one loads every engine again, except those that crashed it too often.

    Args:
        ended: given where it is for one engine only: it stops with that engine, and says so.
    """

    def __init__(
        self,
        environment: WorkerEnvironment,
        device: str,
        settings: SupervisorSettings,
        start: Start | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._environment = environment
        self._device = device
        self._settings = settings
        self._start: Start = start or _start
        self._ended = ended
        self._worker: WorkerProcess | None = None
        self._hosted: dict[str, Hosted] = {}
        self._wake = asyncio.Event()
        self._suspects: set[str] = set()
        self._in_flight: dict[int, float] = {}
        self._calls = 0
        self._restarts: list[float] = []
        self._deaths = 0
        self._task = asyncio.create_task(self._run())

    @property
    def device(self) -> str:
        return self._device

    @property
    def pid(self) -> int | None:
        """The worker process that runs now."""
        return self._worker.pid if self._worker is not None else None

    @property
    def name(self) -> str:
        """Its environment and device, such as "onnxruntime@cpu"."""
        return f"{self._environment.name}@{self._device}"

    @property
    def deaths(self) -> int:
        """Workers that ended without being told to."""
        return self._deaths

    def ready(self, key: str) -> bool:
        """Whether an engine is loaded in a worker that lives."""
        hosted = self._hosted.get(key)
        return hosted is not None and hosted.ready and self._worker is not None and self._worker.alive

    def reason(self, key: str) -> str:
        """Why an engine is not ready."""
        hosted = self._hosted.get(key)
        if hosted is None:
            return "it is not loaded"
        # A worker is dead a few turns of the loop before `_died` says so of its engines.
        if hosted.ready and self._worker is not None and not self._worker.alive:
            return _death(self._worker)
        return hosted.reason

    async def load(
        self,
        key: str,
        directory: Path,
        *,
        instances: int,
        warmup: Sequence[int],
        options: dict[str, str],
        changed: Callable[[], None],
    ) -> LoadedModel:
        """Load an engine, now and in every worker that replaces this one.

        Args:
            changed: called when it becomes ready or stops being ready later on.

        Raises:
            EnginehouseError: it cannot be loaded; the worker holds nothing of it.
        """
        future: asyncio.Future[LoadedModel] = asyncio.get_running_loop().create_future()
        hosted = Hosted(key, directory, instances, warmup, options, changed, future)
        self._hosted[key] = hosted
        self._wake.set()
        try:
            return await future
        except BaseException:
            self._hosted.pop(key, None)
            # A load that was cancelled half-way may still succeed in the worker.
            if self._ended is not None:
                await self._end()
            elif hosted.loading or hosted.ready:
                await self._unload(key)
            raise

    async def unload(self, key: str) -> None:
        """Unload an engine once what runs of it has run. Nothing when it is not loaded."""
        if self._hosted.pop(key, None) is None:
            return
        if self._ended is not None:
            await self._end()
        else:
            await self._unload(key)

    async def infer(
        self,
        key: str,
        inputs: Sequence[TensorInput],
        outputs: Sequence[str],
        deadline_ns: int | None,
        places: Sequence[Place] = (),
    ) -> InferenceResult:
        """Run one batch.

        Raises:
            UnavailableError: the worker died, or is being restarted.
            EnginehouseError: what the worker says.
        """
        worker = self._worker
        if worker is None or not self.ready(key):
            raise UnavailableError(f"the worker is not ready: {self.reason(key)}", retry_after_seconds=1.0)
        self._calls += 1
        call = self._calls
        self._in_flight[call] = time.monotonic()
        try:
            return await worker.infer(key, inputs, outputs, deadline_ns, places)
        except UnavailableError:
            if not worker.alive:
                self._suspects.add(key)
            raise
        finally:
            del self._in_flight[call]

    async def open_region(self, region: DeviceRegion) -> None:
        """Open a client's device memory in the worker that runs now. Another opens it when it is first used.

        Raises:
            EnginehouseError: what the worker says is wrong with it.
        """
        worker = self._worker
        if worker is not None and worker.alive and "cuda" in worker.memory:
            try:
                await worker.open_region(region)
            except UnavailableError:
                if worker.alive:
                    raise

    async def close_region(self, region: DeviceRegion) -> None:
        """Close a client's device memory, where it is open."""
        worker = self._worker
        if worker is not None and worker.alive:
            with contextlib.suppress(EnginehouseError):
                await worker.close_region(region)

    async def close(self) -> None:
        """Stop the worker, whatever it does: it may be starting, or in the middle of a load."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._worker is not None:
            await self._worker.close()
            self._worker = None

    async def _end(self) -> None:
        await self.close()
        if self._ended is not None:
            self._ended()

    async def _unload(self, key: str) -> None:
        if self._worker is not None and self._worker.alive:
            with contextlib.suppress(EnginehouseError):
                await self._worker.unload(key)

    async def _run(self) -> None:
        attempts = 0
        while True:
            if not self._wanted():
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                self._worker = await self._start(
                    self._environment, self._device, lambda line: _log.info("output", line=line, worker=self.name)
                )
            except EnginehouseError as error:
                attempts += 1
                _log.error("start failed", worker=self.name, attempt=attempts, reason=error.message)
                self._start_failed(error, last=attempts >= self._settings.start_attempts)
                await self._sleep(attempts)
                continue
            attempts = 0
            await self._tend(self._worker)

    def _wanted(self) -> list[Hosted]:
        return [h for h in self._hosted.values() if not h.failed]

    def _start_failed(self, error: EnginehouseError, *, last: bool) -> None:
        for hosted in self._wanted():
            hosted.reason = error.message
            if last and not hosted.first.done():
                hosted.first.set_exception(error)

    async def _tend(self, worker: WorkerProcess) -> None:
        _log.info("started", worker=self.name, pid=worker.pid, backends=dict(worker.backends))
        helpers = [asyncio.create_task(self._load_all(worker)), asyncio.create_task(self._check(worker))]
        try:
            await asyncio.wait({worker.exited})
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        # One more turn of the loop, in which the calls that died with it say so.
        await asyncio.sleep(0)
        self._died(worker)
        await self._sleep(len(self._restarts))

    def _died(self, worker: WorkerProcess) -> None:
        now = time.monotonic()
        reason = worker.obituary
        # Engines load one at a time, so a crash during a load is that load's; otherwise all that ran share the blame.
        culprits = [h for h in self._hosted.values() if h.loading] or [
            h for h in self._hosted.values() if h.key in self._suspects
        ]
        event = "device context lost" if worker.exited.result() == POISONED else "died"
        _log.error(event, worker=self.name, reason=reason, running=[h.key for h in culprits])
        self._worker = None
        self._deaths += 1
        self._suspects.clear()
        self._restarts = [t for t in self._restarts if t > now - 60] + [now]
        for hosted in self._hosted.values():
            hosted.ready = hosted.loading = False
            hosted.reason = _death(worker)
        culprit = convict(culprits, now, self._settings)
        if culprit is not None:
            self._give_up(culprit, reason)
        for hosted in list(self._hosted.values()):
            hosted.changed()

    def _give_up(self, hosted: Hosted, reason: str) -> None:
        hosted.failed = True
        hosted.reason = (
            f"it crashed its worker {len(hosted.crashes)} times (limit {self._settings.crash_limit}), "
            f"and is not loaded again before its configuration changes or it is loaded by hand: {reason}"
        )
        _log.error("given up", worker=self.name, model=hosted.key, reason=hosted.reason)
        if not hosted.first.done():
            hosted.first.set_exception(UnavailableError(hosted.reason, details={"crash_loop": "true"}))

    async def _load_all(self, worker: WorkerProcess) -> None:
        while worker.alive:  # or loads would fail for ever, without a turn of the loop for anything else
            pending = [h for h in self._wanted() if not h.ready]
            if not pending:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._load_one(worker, pending[0])

    async def _load_one(self, worker: WorkerProcess, hosted: Hosted) -> None:
        hosted.loading = True
        hosted.reason = "it is being loaded"
        try:
            loaded = await asyncio.wait_for(
                worker.load(hosted.key, hosted.directory, hosted.instances, hosted.warmup, hosted.options),
                self._settings.load_timeout,
            )
        except asyncio.TimeoutError:
            _log.error("load hangs", worker=self.name, model=hosted.key, seconds=self._settings.load_timeout)
            await worker.kill()
            await worker.exited
        except EnginehouseError as error:
            if not worker.alive:
                return  # `_died` sees that it was loading
            hosted.loading = False
            hosted.failed, hosted.reason = True, error.message
            if not hosted.first.done():
                hosted.first.set_exception(error)
            else:
                _log.error("reload failed", worker=self.name, model=hosted.key, reason=error.message)
                if isinstance(error, _MAY_PASS):
                    asyncio.get_running_loop().call_later(self._settings.reload_interval, self._reload, hosted)
            hosted.changed()
        else:
            hosted.loading, hosted.ready, hosted.reason = False, True, ""
            if hosted.key not in self._hosted:
                await self._unload(hosted.key)
            if not hosted.first.done():
                hosted.first.set_result(loaded)
            hosted.changed()

    def _reload(self, hosted: Hosted) -> None:
        hosted.failed = False
        self._wake.set()

    async def _check(self, worker: WorkerProcess) -> None:
        """Kill the worker when it does not answer, or a batch takes too long."""
        while True:
            await asyncio.sleep(self._settings.ping_interval)
            try:
                # A framework may hold the interpreter while it loads, so a load has a limit of its own.
                busy = any(h.loading for h in self._hosted.values())
                limit = self._settings.load_timeout if busy else self._settings.ping_timeout
                await asyncio.wait_for(worker.ping(), limit)
            except asyncio.TimeoutError:
                _log.error("hangs", worker=self.name, pid=worker.pid, seconds=limit)
                await worker.kill()
                return
            except EnginehouseError:
                return
            oldest = min(self._in_flight.values(), default=None)
            if oldest is not None and time.monotonic() - oldest > self._settings.inference_timeout:
                _log.error("a batch hangs", worker=self.name, seconds=self._settings.inference_timeout)
                await worker.kill()
                return

    async def _sleep(self, attempt: int) -> None:
        await asyncio.sleep(min(self._settings.backoff_first * 2 ** max(attempt - 1, 0), self._settings.backoff_most))


def _death(worker: WorkerProcess) -> str:
    return f"{worker.obituary}; a new one is being started"


async def _start(environment: WorkerEnvironment, device: str, log: Callable[[str], None]) -> WorkerProcess:
    return await WorkerProcess.start(environment, device, log)
