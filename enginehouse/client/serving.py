"""The desired state of serving: load and unload models everywhere, and wait for the inference servers we talk to."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from enginehouse.client.connection import Endpoint, backoff
from enginehouse.client.inference import AsyncInference
from enginehouse.client.resources import PAGE_SIZE, alias_name, all_pages, full_name
from enginehouse.client.values import Alias, Batching, Engine, ServedVersion, ServingConfig
from enginehouse.client.values.targets import option_text
from enginehouse.errors import (
    AbortedError,
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from enginehouse.names import check_id
from enginehouse.v1 import serving_pb2 as pb
from enginehouse.v1 import serving_pb2_grpc

MAX_EDITS = 8
# Earlier versions that a configuration remembers when the next one is made.
KEPT_VERSIONS = 15
# A failure that was there before our edit counts only once the process had this long to act on the edit.
STALE_FAILURE_SECONDS = 3.0
# How long an inference process may be away while we wait for it: a restart's length.
AWAY_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Edit:
    """What `load` changes of a configuration; None keeps what is there. It names an engine, or an alias to follow."""

    engine: str = ""
    alias: str = ""
    version: int | None = None
    instances: int | None = None
    batching: Batching | None = None
    options: Mapping[str, str] | None = None
    latest_versions: int | None = None
    warmup_batch_sizes: tuple[int, ...] | None = None


class AsyncServing:
    """The serving configurations of a project."""

    def __init__(self, endpoint: Endpoint, inference: AsyncInference, parent: str) -> None:
        self._endpoint = endpoint
        self._inference = inference
        self._parent = parent

    async def get(self, model_name: ServingConfig | str) -> ServingConfig:
        """The configuration of a served model.

        Raises:
            NotFoundError: no model is served under that name.
        """
        request = pb.GetServingConfigRequest(name=full_name(model_name, self._parent, "servingConfigs"))
        stub = self._endpoint.stub(serving_pb2_grpc.ServingConfigsStub)
        return ServingConfig.from_proto(await self._endpoint.unary(stub.GetServingConfig, request))

    async def list(self) -> builtins.list[ServingConfig]:
        """All of the project's configurations."""
        stub = self._endpoint.stub(serving_pb2_grpc.ServingConfigsStub)
        request = pb.ListServingConfigsRequest(parent=self._parent, page_size=PAGE_SIZE)
        found = await all_pages(self._endpoint, stub.ListServingConfigs, request, "serving_configs")
        return [ServingConfig.from_proto(config) for config in found]

    async def load(
        self,
        model_name: str,
        engine: Engine | Alias | str,
        *,
        version: int | None,
        instances: int | None,
        batching: Batching | None,
        options: Mapping[str, Any] | None,
        latest_versions: int | None,
        warmup_batch_sizes: Sequence[int] | None,
        wait: bool,
        timeout: float,
    ) -> ServingConfig:
        """Serve an engine (`Client.load` says what the arguments mean)."""
        check_id(model_name, "model name")
        alias = alias_name(engine if isinstance(engine, str) else engine.name, self._parent)
        edit = Edit(
            engine="" if alias else full_name(engine, self._parent, "engines"),
            alias=alias or "",
            version=version,
            instances=instances,
            batching=batching,
            options=None if options is None else {name: option_text(value) for name, value in options.items()},
            latest_versions=latest_versions,
            warmup_batch_sizes=None if warmup_batch_sizes is None else tuple(warmup_batch_sizes),
        )
        for attempt in range(MAX_EDITS):
            current = await self._current(model_name)
            wanted, target = edited(current, edit)
            failure = await self._failure(model_name, target) if wait else None
            if wanted == current:
                break
            try:
                current = await self._update(wanted)
                break
            except AbortedError:
                # Another edit came first: apply ours to what it left.
                if attempt == MAX_EDITS - 1:
                    raise
                await backoff(0)
        if wait:
            await self._wait_ready(model_name, target, failure, timeout)
        return current

    async def unload(self, model_name: str, *, wait: bool, timeout: float) -> None:
        """Stop serving a model (`Client.unload` says what the arguments mean)."""
        request = pb.DeleteServingConfigRequest(name=full_name(model_name, self._parent, "servingConfigs"))
        stub = self._endpoint.stub(serving_pb2_grpc.ServingConfigsStub)
        await self._endpoint.unary(stub.DeleteServingConfig, request)
        deadline = time.monotonic() + timeout
        try:
            while wait and await self._inference.model_ready(model_name, None):
                if time.monotonic() > deadline:
                    raise DeadlineExceededError(f"{model_name} is still served after {timeout:g} s")
                await asyncio.sleep(0.05)
        except UnavailableError:
            return  # a process that is not there serves nothing, and will not when it comes back

    async def _current(self, model_name: str) -> ServingConfig:
        try:
            return await self.get(model_name)
        except NotFoundError:
            return ServingConfig(name=full_name(model_name, self._parent, "servingConfigs"))

    async def _update(self, config: ServingConfig) -> ServingConfig:
        request = pb.UpdateServingConfigRequest(serving_config=config.to_proto(), allow_missing=True)
        stub = self._endpoint.stub(serving_pb2_grpc.ServingConfigsStub)
        return ServingConfig.from_proto(await self._endpoint.unary(stub.UpdateServingConfig, request))

    async def _wait_ready(self, model_name: str, version: int, old_failure: str | None, timeout: float) -> None:
        started = answered = time.monotonic()
        pause = 0.02
        while True:
            away: EnginehouseError | None = None
            try:
                if await self._inference.ready_everywhere(model_name, version, timeout=min(timeout, 5.0)):
                    return
                answered = time.monotonic()
                failure = await self._failure(model_name, version)
                waited = time.monotonic() - started
                if failure is not None and (failure != old_failure or waited > STALE_FAILURE_SECONDS):
                    raise FailedPreconditionError(
                        f"version {version} of {model_name} did not load: {failure}",
                        details={"model": model_name, "version": str(version)},
                    )
            except (UnavailableError, DeadlineExceededError) as error:
                away = error
                if time.monotonic() - answered > AWAY_SECONDS:
                    raise UnavailableError(
                        f"the configuration of {model_name} is stored, but nobody says whether it is served: "
                        f"{error.message}"
                    ) from None
            if time.monotonic() - started > timeout:
                raise DeadlineExceededError(
                    f"version {version} of {model_name} is not ready after {timeout:g} s; "
                    f"the configuration is kept and loading goes on{f' [{away.message}]' if away else ''}"
                )
            await asyncio.sleep(pause)
            pause = min(0.5, pause * 1.5)

    async def _failure(self, model_name: str, version: int) -> str | None:
        """Why the process could not load that version; None while it did not try, tries or did."""
        try:
            index = await self._inference.index()
        except (UnavailableError, DeadlineExceededError):
            return None
        for entry in index:
            if (entry.name, entry.version) == (model_name, str(version)):
                return entry.reason if entry.state == "UNAVAILABLE" and entry.reason else None
        return None


def edited(current: ServingConfig, edit: Edit) -> tuple[ServingConfig, int]:
    """The configuration after an edit, and the version that the edit's engine has in it.

    Without a version, an edit that changes nothing keeps the newest version, and any other makes the next one: "this
    version is ready" then always says that the edit was carried out.

    Raises:
        InvalidArgumentError: the version is another engine's already.
    """
    wanted = dataclasses.replace(
        current,
        instances=current.instances if edit.instances is None else edit.instances,
        batching=current.batching if edit.batching is None else edit.batching,
        options=current.options if edit.options is None else dict(edit.options),
        latest_versions=current.latest_versions if edit.latest_versions is None else edit.latest_versions,
        warmup_batch_sizes=current.warmup_batch_sizes if edit.warmup_batch_sizes is None else edit.warmup_batch_sizes,
    )
    newest = current.newest
    if edit.version is None:
        if newest is not None and _means(newest, edit) and wanted == current:
            return current, newest.version
        version = newest.version + 1 if newest else 1
        # Older ones than these are served by nobody, and would keep their engines from being deleted for ever.
        kept = sorted(current.versions, key=lambda v: v.version)[-max(KEPT_VERSIONS, wanted.latest_versions) :]
        if edit.alias:
            kept = [v for v in kept if v.alias != edit.alias]  # one version follows an alias: the newest
        versions = (*kept, ServedVersion(version, edit.engine, edit.alias))
        return dataclasses.replace(wanted, versions=versions), version
    if edit.version < 1:
        raise InvalidArgumentError(f"version {edit.version} is not valid: versions begin at 1")
    for known in current.versions:
        if known.version == edit.version:
            if not _means(known, edit):
                raise InvalidArgumentError(
                    f"version {edit.version} of {current.id} is {known.engine}: "
                    "take another version, or none for the next"
                )
            return wanted, edit.version
    others = [v for v in current.versions if not edit.alias or v.alias != edit.alias]
    versions = tuple(sorted((*others, ServedVersion(edit.version, edit.engine, edit.alias)), key=lambda v: v.version))
    return dataclasses.replace(wanted, versions=versions), edit.version


def _means(version: ServedVersion, edit: Edit) -> bool:
    """Whether a version is what an edit asks for: that engine and no alias, or that alias whatever its engine."""
    return version.alias == edit.alias and (bool(edit.alias) or version.engine == edit.engine)
