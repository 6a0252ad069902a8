"""ServingConfigs: the desired state, edited by people and watched by every inference process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.duration_pb2 import Duration

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from enginehouse.names import NestedName, ResourceName, check_id, parse, parse_nested, parse_project
from enginehouse.v1 import serving_pb2 as pb
from enginehouse.v1 import serving_pb2_grpc
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.storage.aliases import AliasStore
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.storage.serving import ServingStore

COLLECTION = "servingConfigs"
MAX_INSTANCES = 64
MAX_BATCH = 65536
# An alias that moves takes the version after the highest: there must always be one.
MAX_VERSION = 2**53
MAX_QUEUE_SIZE = 1_000_000
MAX_DELAY_SECONDS = 60.0
MAX_TIMEOUT_SECONDS = 86400.0
# As in the inference service's check of load requests.
MAX_PRIORITY_LEVELS = 100
MAX_SHARE = 1000
MAX_CACHE_BYTES = 2**40


class ServingConfigsService(serving_pb2_grpc.ServingConfigsServicer):
    """Reads, replaces and watches configurations."""

    def __init__(self, store: ServingStore, engines: EngineIndex, aliases: AliasStore, notifier: Notifier) -> None:
        self._store = store
        self._engines = engines
        self._aliases = aliases
        self._notifier = notifier

    async def GetServingConfig(self, request: pb.GetServingConfigRequest, context: Any) -> pb.ServingConfig:  # noqa: N802
        return self._store.get(parse(request.name, COLLECTION))

    async def ListServingConfigs(  # noqa: N802
        self, request: pb.ListServingConfigsRequest, context: Any
    ) -> pb.ListServingConfigsResponse:
        page = Page.of(request.page_size, request.page_token)
        configs, token = self._store.page(parse_project(request.parent), page)
        return pb.ListServingConfigsResponse(serving_configs=configs, next_page_token=token)

    async def UpdateServingConfig(  # noqa: N802
        self, request: pb.UpdateServingConfigRequest, context: Any
    ) -> pb.ServingConfig:
        config = pb.ServingConfig()
        config.CopyFrom(request.serving_config)
        name = parse(config.name, COLLECTION)
        check_id(name.id, "the serving configuration's id")
        aliases = self._fill_aliases(name, config)
        engines = self._check_versions(name, config)
        check_config(config, largest_batch(self._engines, config))
        config.ClearField("generation")
        config.update_time.GetCurrentTime()
        ids = {engine.id for engine in engines}
        stored = self._store.put(name, config, ids, aliases, allow_missing=request.allow_missing)
        self._notifier.notify(("serving", name.project))
        return stored

    async def DeleteServingConfig(  # noqa: N802
        self, request: pb.DeleteServingConfigRequest, context: Any
    ) -> empty_pb2.Empty:
        name = parse(request.name, COLLECTION)
        self._store.delete(name)
        self._notifier.notify(("serving", name.project))
        return empty_pb2.Empty()

    async def WatchServingConfigs(  # noqa: N802
        self, request: pb.WatchServingConfigsRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingConfigsResponse]:
        project = parse_project(request.parent)
        with self._notifier.watch(("serving", project)) as watch:
            while True:
                watch.arm()
                state = self._store.state(project)
                yield pb.WatchServingConfigsResponse(serving_configs=state.configs, revision=state.revision)
                # A change while the client was slow to read wakes us at once; it sees the newest state only.
                await watch.wait()

    def _check_versions(self, name: ResourceName, config: pb.ServingConfig) -> list[ResourceName]:
        if not config.versions:
            raise InvalidArgumentError(f"{name} has no versions: expected at least one, each with an engine")
        engines = []
        seen: set[int] = set()
        for served in config.versions:
            if not 1 <= served.version <= MAX_VERSION or served.version in seen:
                what = "comes twice" if served.version in seen else "is not valid"
                raise InvalidArgumentError(
                    f"{name}: version {served.version} {what}: expected different ones from 1 to {MAX_VERSION}"
                )
            seen.add(served.version)
            engine = parse(served.engine, "engines")
            if engine.project != name.project:
                raise InvalidArgumentError(f"{name}: {engine} is in another project")
            if not self._engines.exists(engine):
                raise FailedPreconditionError(
                    f"{name}: version {served.version} names {engine}, which does not exist: build it first",
                    details={"engine": str(engine)},
                )
            engines.append(engine)
        return engines

    def _fill_aliases(self, name: ResourceName, config: pb.ServingConfig) -> list[NestedName]:
        """Give each version that names an alias the alias's engine; returns the aliases."""
        aliases: dict[NestedName, int] = {}
        for served in config.versions:
            if not served.alias:
                continue
            alias = parse_nested(served.alias, "models", "aliases")
            if alias.owner.project != name.project:
                raise InvalidArgumentError(f"{name}: {alias} is in another project")
            if alias in aliases:
                raise InvalidArgumentError(
                    f"{name}: versions {aliases[alias]} and {served.version} name {alias}: expected one that follows it"
                )
            aliases[alias] = served.version
            try:
                served.engine = self._aliases.get(alias).engine
            except NotFoundError:
                raise FailedPreconditionError(
                    f"{name}: version {served.version} names {alias}, which does not exist: set it first",
                    details={"alias": str(alias)},
                ) from None
        return list(aliases)


def largest_batch(engines: EngineIndex, config: pb.ServingConfig) -> int:
    """The largest batch that every version takes; an engine without a batch dimension takes 1."""
    return min(max(1, engines.get(parse(version.engine, "engines")).max_batch_size) for version in config.versions)


def check_config(config: pb.ServingConfig, largest_batch: int) -> None:
    """Check everything but the versions.

    Args:
        largest_batch: the largest batch that every version's engine takes.

    Raises:
        InvalidArgumentError: naming the field that is wrong.
    """
    batching = config.batching
    _within(config.latest_versions, 0, 1000, "latest_versions")
    _within(config.instances, 0, MAX_INSTANCES, "instances")
    _within(batching.max_batch_size, 0, largest_batch, "batching.max_batch_size")
    _within(batching.max_queue_size, 0, MAX_QUEUE_SIZE, "batching.max_queue_size")
    largest = batching.max_batch_size or largest_batch
    for size in batching.preferred_batch_sizes:
        _within(size, 1, largest, "batching.preferred_batch_sizes")
    for size in config.warmup_batch_sizes:
        _within(size, 1, largest, "warmup_batch_sizes")
    _duration(batching.max_queue_delay, MAX_DELAY_SECONDS, "batching.max_queue_delay")
    _within(batching.device_share, 0, MAX_SHARE, "batching.device_share")
    _within(batching.response_cache_bytes, 0, MAX_CACHE_BYTES, "batching.response_cache_bytes")
    _timeout(batching, "batching")
    _priorities(batching)


def _priorities(batching: pb.BatchingPolicy) -> None:
    levels = batching.priority_levels
    _within(levels, 0, MAX_PRIORITY_LEVELS, "batching.priority_levels")
    _within(batching.default_priority_level, 0, levels, "batching.default_priority_level")
    seen: set[int] = set()
    for queue in batching.priority_queues:
        field = "batching.priority_queues"
        if not levels:
            raise InvalidArgumentError(f"{field} without batching.priority_levels: expected how many there are")
        _within(queue.priority_level, 1, levels, f"{field}.priority_level")
        if queue.priority_level in seen:
            raise InvalidArgumentError(f"{field} has priority_level {queue.priority_level} twice: expected it once")
        seen.add(queue.priority_level)
        _within(queue.max_queue_size, 0, MAX_QUEUE_SIZE, f"{field}.max_queue_size")
        _timeout(queue, field)


def _timeout(policy: pb.BatchingPolicy | pb.PriorityQueue, field: str) -> None:
    if policy.timeout_action not in pb.TimeoutAction.values():
        raise InvalidArgumentError(
            f"{field}.timeout_action is {policy.timeout_action}: expected one of {', '.join(pb.TimeoutAction.keys())}"
        )
    if policy.HasField("queue_timeout"):
        _duration(policy.queue_timeout, MAX_TIMEOUT_SECONDS, f"{field}.queue_timeout")
        if policy.queue_timeout.ToNanoseconds() == 0:
            raise InvalidArgumentError(f"{field}.queue_timeout is 0: leave it out for no limit")


def _within(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"{field} is {value}: expected {low} to {high}")


def _duration(value: Duration, most_seconds: float, field: str) -> None:
    seconds = value.ToNanoseconds() / 1e9
    if not 0 <= seconds <= most_seconds:
        raise InvalidArgumentError(f"{field} is {seconds:g} s: expected 0 to {most_seconds:g} s")
