"""Brings what is served to what should be served, one model at a time and without gaps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from enginehouse.errors import (
    DataLossError,
    DeadlineExceededError,
    EnginehouseError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse_inference.batching.turns import DeviceTurns
from enginehouse_inference.devices.devices import Devices
from enginehouse_inference.models.catalog import Catalog, State
from enginehouse_inference.models.plan import Loading, ModelPlan, QueueDefaults, VersionPlan
from enginehouse_inference.models.version import EngineInfo, ModelVersion

_log = structlog.get_logger("models")

# Wait between attempts to load what failed for a reason that may pass.
_MAY_PASS = (UnavailableError, DataLossError, ResourceExhaustedError, DeadlineExceededError)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)


class Engines(Protocol):
    """Where engines come from."""

    async def choose(self, engine: str) -> str:
        """The engine to serve where a published one is configured; may take as long as a build."""

    async def directory(self, engine: str) -> Path:
        """The local directory of a published engine, complete and verified."""


class ModelManager:
    """Loads, replaces and unloads versions so that the catalog comes to match the plans.

    Of one model, a new version is loaded before an old one is unloaded, and when the new one cannot be loaded the old
    one stays. Models do not wait for each other, but for one of the few loads at a time and their turn in the worker.

    Args:
        device_batches: batches that a device computes at once, of all models together; 0: as many as they have
            instances.
        concurrent_loads: engines that are fetched and loaded at once.
    """

    def __init__(
        self,
        catalog: Catalog,
        devices: Devices,
        engines: Engines,
        *,
        defaults: QueueDefaults | None = None,
        drain_seconds: float = 25.0,
        device_batches: int = 0,
        concurrent_loads: int = 4,
    ) -> None:
        self._catalog = catalog
        self._devices = devices
        self._engines = engines
        self._defaults = defaults or QueueDefaults()
        self._drain_seconds = drain_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._plans: dict[str, ModelPlan | None] = {}
        self._loads = itertools.count(1)
        self._device_batches = device_batches
        self._turns: dict[str, DeviceTurns] = {}
        # Fetching, checking and loading many engines at once would leave requests too little of the machine.
        self._loading = asyncio.Semaphore(concurrent_loads)

    def want(self, name: str, plan: ModelPlan | None) -> asyncio.Task[None]:
        """Serve a model by a plan from now on, or not at all.

        Returns the task that makes the first attempt: it ends when the plan is served, and raises the first error of a
        version that cannot be. A later call for the same model replaces an attempt that is still under way.
        """
        previous = self._tasks.get(name)
        if previous is not None:
            previous.cancel()
        self._plans[name] = plan
        task = asyncio.create_task(self._attempt(name, plan, previous))
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._after(name, plan, done, 0))
        return task

    def planned(self, name: str) -> ModelPlan | None:
        """What was last wanted of a model."""
        return self._plans.get(name)

    async def close(self) -> None:
        """Stop; nothing is unloaded, because the workers go too."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _after(self, name: str, plan: ModelPlan | None, done: asyncio.Task[None], attempt: int) -> None:
        """Try again when the reason may pass and nothing else is wanted meanwhile."""
        if self._tasks.get(name) is not done:
            return
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, _MAY_PASS) or "crash_loop" in error.details:
            del self._tasks[name]
            return
        task = asyncio.create_task(self._retry(name, plan, attempt))
        self._tasks[name] = task
        task.add_done_callback(lambda again: self._after(name, plan, again, attempt + 1))

    async def _retry(self, name: str, plan: ModelPlan | None, attempt: int) -> None:
        await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
        await self._attempt(name, plan, None)

    async def _attempt(self, name: str, plan: ModelPlan | None, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            # It may be in the middle of a load, which it takes back first.
            await asyncio.gather(previous, return_exceptions=True)
        wanted = {v.version: v for v in plan.versions} if plan is not None else {}
        errors: list[EnginehouseError] = []
        if plan is not None:
            for version in wanted.values():
                try:
                    await self._serve(plan, version)
                except EnginehouseError as error:
                    errors.append(error)
        for number, slot in list(self._catalog.slots(name)):
            # Without a successor that works, an old version is better than none.
            if number not in wanted and not (errors and slot.ready):
                await self._retire(name, number)
        if errors:
            # One that may pass is tried again, whatever else is wrong.
            raise next((error for error in errors if isinstance(error, _MAY_PASS)), errors[0])

    async def _serve(self, plan: ModelPlan, version: VersionPlan) -> None:
        slot = self._catalog.slot(plan.name, version.version)
        current = slot.serving
        if current is not None and current.ready and (current.plan, current.loading) == (version, plan.loading):
            current.set_batching(plan.batching)
            self._catalog.set_state(plan.name, version.version, State.READY)
            return
        self._catalog.set_state(plan.name, version.version, State.LOADING)
        try:
            # Before its turn: a build that is waited for must not hold up loads of engines that are there.
            chosen = await self._engines.choose(version.engine) if version.engine else ""
            async with self._loading:
                loaded = await self._load(plan, version, chosen)
        except EnginehouseError as error:
            _log.error("load failed", model=plan.name, version=version.version, reason=error.message)
            self._catalog.set_state(plan.name, version.version, State.UNAVAILABLE, error.message)
            raise
        except asyncio.CancelledError:
            self._catalog.set_state(plan.name, version.version, State.UNAVAILABLE, "another load took its place")
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            _log.exception("load failed", model=plan.name, version=version.version)
            self._catalog.set_state(plan.name, version.version, State.UNAVAILABLE, reason)
            raise InternalError(f"loading model {plan.name!r}: {reason}") from error
        old = self._catalog.publish(loaded)
        _log.info(
            "serving",
            model=plan.name,
            version=version.version,
            engine=chosen or str(version.directory),
            seconds=round(loaded.loaded.seconds, 3),
        )
        if old is not None:
            await asyncio.shield(old.close(self._drain_seconds))

    async def _load(self, plan: ModelPlan, version: VersionPlan, chosen: str) -> ModelVersion:
        directory = version.directory or await self._engines.directory(chosen)
        engine, warmup = await asyncio.to_thread(_read_engine, directory)
        worker = self._devices.worker(engine.backend, engine.device_kind)
        key = f"{plan.name}:{version.version}:{next(self._loads)}"
        loaded = await worker.load(
            key,
            directory,
            instances=plan.loading.instances,
            warmup=_warmup(plan.loading, warmup),
            options=dict(plan.loading.options),
            changed=lambda: self._catalog.changed(plan.name),
        )
        return ModelVersion(
            plan,
            version,
            key=key,
            worker=worker,
            loaded=loaded,
            engine=engine,
            statistics=self._catalog.slot(plan.name, version.version).statistics,
            defaults=self._defaults,
            turns=self._device_turns(worker.device),
        )

    def _device_turns(self, device: str) -> DeviceTurns | None:
        if not self._device_batches:
            return None
        return self._turns.setdefault(device, DeviceTurns(self._device_batches))

    async def _retire(self, name: str, number: int) -> None:
        slot = self._catalog.slot(name, number)
        serving = slot.serving
        if serving is not None:
            slot.serving = None
            self._catalog.set_state(name, number, State.UNLOADING)
            with contextlib.suppress(EnginehouseError):
                await asyncio.shield(serving.close(self._drain_seconds))
            _log.info("unloaded", model=name, version=number)
        self._catalog.forget(name, number)


def _read_engine(directory: Path) -> tuple[EngineInfo, tuple[int, ...]]:
    """What an engine says of itself, and the default warm-up: 1 and its largest batch."""
    try:
        manifest: Any = json.loads((directory / "engine.json").read_text())
        device = manifest.get("device") or {}
        info = EngineInfo(
            backend=str(manifest["backend"]),
            backend_version=str(manifest.get("backend_version", "")),
            precision=str(manifest.get("precision", "")),
            payload=str(manifest.get("payload", "")),
            directory=directory,
            device_kind=str(device.get("kind", "")),
            device_product=str(device.get("product", "")),
            optimal_batch_size=_optimal(manifest),
        )
        largest = int(manifest.get("max_batch_size") or 0) if manifest.get("batched") else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{directory} is not an engine's directory: expected an engine.json with its backend ({error!r})"
        ) from error
    return info, (1, largest) if largest > 1 else (1,)


def _optimal(manifest: Mapping[str, Any]) -> int:
    """The batch size that the profile for the largest batches was optimized for."""
    profiles = [*manifest.get("profiles", ()), *([manifest["profile"]] if manifest.get("profile") else ())]
    return max((int(profile.get("opt", 0)) for profile in profiles), default=0)


def _warmup(loading: Loading, default: Iterable[int]) -> tuple[int, ...]:
    return tuple(default) if loading.warmup is None else loading.warmup
