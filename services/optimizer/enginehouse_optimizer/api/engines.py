"""Engines: what was published."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from enginehouse.names import parse, parse_project
from enginehouse.v1 import engines_pb2 as pb
from enginehouse.v1 import engines_pb2_grpc
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.paging import Page

ENGINES = "engines"


class EnginesService(engines_pb2_grpc.EnginesServicer):
    """The index of published engines."""

    def __init__(self, engines: EngineIndex) -> None:
        self._engines = engines

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
        )
        return pb.ListEnginesResponse(engines=engines, next_page_token=token)

    async def DeleteEngine(self, request: pb.DeleteEngineRequest, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._engines.delete(parse(request.name, ENGINES))
        return empty_pb2.Empty()
