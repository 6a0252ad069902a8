"""Engines: what was published here or imported, their pins and aliases."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.names import NestedName, ResourceName, check_id, parse, parse_nested, parse_project
from enginehouse.v1 import engines_pb2 as pb
from enginehouse.v1 import engines_pb2_grpc, serving_pb2
from enginehouse_optimizer.api.engine_import import imported_engine
from enginehouse_optimizer.api.serving import check_config, largest_batch
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.storage.aliases import ALL_MODELS, AliasStore
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.paging import Page
from enginehouse_optimizer.threads import in_thread

ENGINES = "engines"


class EnginesService(engines_pb2_grpc.EnginesServicer):
    """The index of published engines."""

    def __init__(self, engines: EngineIndex, aliases: AliasStore, blobs: ProjectBlobs, notifier: Notifier) -> None:
        self._engines = engines
        self._aliases = aliases
        self._blobs = blobs
        self._notifier = notifier

    async def GetEngine(self, request: pb.GetEngineRequest, context: Any) -> pb.Engine:  # noqa: N802
        return self._engines.get(parse(request.name, ENGINES))

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Any) -> pb.ListEnginesResponse:  # noqa: N802
        project = parse_project(request.parent)
        if request.model:
            parse(request.model, "models")
        engines, token = self._engines.page(
            project,
            Page.of(request.page_size, request.page_token),
            model=request.model,
            backend=request.backend,
            precision=request.precision,
            device=request.device,
        )
        return pb.ListEnginesResponse(engines=engines, next_page_token=token)

    async def DeleteEngine(self, request: pb.DeleteEngineRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._engines.delete(parse(request.name, ENGINES))
        return empty_pb2.Empty()

    async def PinEngine(self, request: pb.PinEngineRequest, context: Any) -> pb.Engine:  # noqa: N802
        return self._engines.pin(parse(request.name, ENGINES), request.pinned)

    async def ImportEngine(self, request: pb.ImportEngineRequest, context: Any) -> pb.Engine:  # noqa: N802
        project = parse_project(request.parent)
        model = check_id(request.model_id, "model_id") if request.model_id else ""
        # Every byte is hashed once, which takes as long as reading it.
        engine = await in_thread(imported_engine, self._blobs.of(project), project, request.manifest_digest, model)
        return self._engines.adopt(engine)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.Alias:  # noqa: N802
        name = _alias_name(request.alias.name)
        engine = parse(request.alias.engine, ENGINES)
        if engine.project != name.owner.project:
            raise InvalidArgumentError(f"{name}: {engine} is in another project")
        found = self._engines.get(engine)
        if found.model != str(name.owner):
            raise InvalidArgumentError(
                f"{engine} was built from {found.model}: an alias of {name.owner} names engines of that model only"
            )
        alias, followed = self._aliases.set(name, engine, request.alias.etag, self._check_follower)
        if followed:
            self._notifier.notify(("serving", name.owner.project))
        return alias

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.Alias:  # noqa: N802
        return self._aliases.get(_alias_name(request.name))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:  # noqa: N802
        owner = _owner(request.parent)
        page = Page.of(request.page_size, request.page_token)
        aliases, token = self._aliases.page(owner.project, owner.id, page)
        return pb.ListAliasesResponse(aliases=aliases, next_page_token=token)

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._aliases.delete(_alias_name(request.name))
        return empty_pb2.Empty()

    def _check_follower(self, config: serving_pb2.ServingConfig) -> None:
        try:
            check_config(config, largest_batch(self._engines, config))
        except InvalidArgumentError as error:
            raise FailedPreconditionError(
                f"{config.name} follows the alias and cannot serve that engine: {error.message}; "
                "change the configuration first",
                details={"serving_configs": config.name.rsplit("/", 1)[-1]},
            ) from None


def _alias_name(text: str) -> NestedName:
    name = parse_nested(text, "models", "aliases")
    check_id(name.id, "the alias's id")
    return name


def _owner(parent: str) -> ResourceName:
    """The model whose aliases are wanted; its id is ALL_MODELS for those of all."""
    head, slash, last = parent.rpartition("/")
    if slash and last == ALL_MODELS:
        return ResourceName(parse(f"{head}/all", "models").project, "models", ALL_MODELS)
    return parse(parent, "models")
