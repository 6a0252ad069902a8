"""From the desired state, and what this process was told by hand, to a plan for each model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from enginehouse.errors import AbortedError, FailedPreconditionError, NotFoundError, PermissionDeniedError
from enginehouse.v1 import serving_pb2
from enginehouse_inference.desired.choice import EngineChoice
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.models.load_request import plan_from_load
from enginehouse_inference.models.manager import ModelManager
from enginehouse_inference.models.plan import ModelPlan, plan_from_config

_log = structlog.get_logger("desired")


class DesiredModels:
    """Every model's plan. What a client loads or unloads here by hand holds until its configuration changes.

    Args:
        load_directories: where engine directories of load requests may lie; None: anywhere.
    """

    def __init__(
        self, manager: ModelManager, catalog: Catalog, cache: EngineChoice, load_directories: tuple[Path, ...] | None
    ) -> None:
        self._manager = manager
        self._catalog = catalog
        self._cache = cache
        self._load_directories = load_directories
        self._configured: dict[str, ModelPlan] = {}
        # By hand: a plan, or None for unloaded.
        self._by_hand: dict[str, ModelPlan | None] = {}
        self._attempts: set[asyncio.Task[None]] = set()
        self._cleaning: asyncio.Task[None] | None = None

    def apply(self, state: serving_pb2.WatchServingConfigsResponse) -> None:
        """Take a new desired state."""
        plans = {plan.name: plan for plan in map(plan_from_config, state.serving_configs)}
        for name in self._configured.keys() | plans.keys():
            before, now = self._configured.get(name), plans.get(name)
            if before == now:
                continue
            if name in self._by_hand:
                _log.info("a configuration replaces what was loaded by hand", model=name)
                del self._by_hand[name]
            self._follow(self._manager.want(name, now))
        self._configured = plans
        self._clean()

    async def settled(self) -> None:
        """Return when the first attempt at everything wanted so far has ended, one way or the other."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    async def load(self, name: str, config: str | None) -> None:
        """Load a model by hand: by a JSON configuration, or again as it is configured.

        Raises:
            NotFoundError: there is no configuration of that name.
            PermissionDeniedError: its engine directory lies where it may not.
            AbortedError: another load or unload of the model came before this one was done.
            EnginehouseError: it cannot be loaded.
        """
        plan = plan_from_load(name, config) if config is not None else self._known(name)
        for version in plan.versions:
            if version.directory is not None:
                self._check_directory(version.directory)
        if config is None and name in self._configured:
            self._by_hand.pop(name, None)
        else:
            self._by_hand[name] = plan
        await self._by_hand_done(name, self._manager.want(name, plan))

    async def unload(self, name: str) -> None:
        """Unload a model by hand.

        Raises:
            NotFoundError: there is no such model.
        """
        if name not in self._configured and not list(self._catalog.slots(name)):
            raise NotFoundError(f"no model {name!r} is loaded in this process", details={"model": name})
        self._by_hand[name] = None
        await self._by_hand_done(name, self._manager.want(name, None))

    def unloaded_by_hand(self) -> list[str]:
        """Configured models that a client unloaded here."""
        return sorted(n for n, plan in self._by_hand.items() if plan is None and n in self._configured)

    async def close(self) -> None:
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)

    async def _by_hand_done(self, name: str, task: asyncio.Task[None]) -> None:
        self._follow(task)
        await asyncio.wait({task})  # which goes on when the caller leaves
        if task.cancelled():
            raise AbortedError(
                f"another load or unload of {name!r} took the place of this one", details={"model": name}
            )
        task.result()

    def _known(self, name: str) -> ModelPlan:
        plan = self._configured.get(name) or self._by_hand.get(name)
        if plan is None:
            raise NotFoundError(
                f"no serving configuration {name!r}: `enginehouse load` makes one for every replica; for this process "
                'only, load with a config parameter such as {"engine_directory": "/path"}',
                details={"model": name},
            )
        return plan

    def _check_directory(self, directory: Path) -> None:
        if not directory.is_absolute():
            raise FailedPreconditionError(f"engine_directory {str(directory)!r} is relative: expected an absolute path")
        resolved = directory.resolve()
        if self._load_directories is not None and not any(
            resolved.is_relative_to(root.resolve()) for root in self._load_directories
        ):
            roots = ", ".join(str(root) for root in self._load_directories) or "none"
            raise PermissionDeniedError(
                f"engine_directory {str(directory)!r} is outside the folders that engines may be loaded from "
                f"({roots}): set ENGINEHOUSE_LOAD_DIRECTORIES"
            )

    def _follow(self, task: asyncio.Task[None]) -> None:
        self._attempts.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if not task.cancelled():
            task.exception()  # the manager has logged it

    def _clean(self) -> None:
        if self._cleaning is None or self._cleaning.done():
            self._cleaning = asyncio.create_task(self._clean_when_settled())

    async def _clean_when_settled(self) -> None:
        await self.settled()
        await self._cache.keep_only(self._engines_in_use)

    def _engines_in_use(self) -> list[str]:
        wanted = [v.engine for plan in self._configured.values() for v in plan.versions]
        serving = [
            slot.serving.plan.engine
            for name in self._catalog.names()
            for _, slot in self._catalog.slots(name)
            if slot.serving is not None
        ]
        return [engine for engine in (*wanted, *serving) if engine]
