"""The gRPC server of GRPCInferenceService, by the descriptors in tritonclient's stubs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from tritonclient.grpc import service_pb2

from enginehouse.rpc.authorization import Authorizer
from enginehouse.rpc.server import RpcServer, Service
from enginehouse.rpc.settings import ServerSettings
from enginehouse_inference.process_tuning import GRPC_OPTIONS
from enginehouse_inference.service.host import EngineHost
from enginehouse_inference.service.inference import InferenceMethods, handlers
from enginehouse_inference.service.resources import resource_function

_SERVICE = "inference.GRPCInferenceService"


def front_server(
    settings: ServerSettings,
    inference: InferenceMethods,
    host: EngineHost,
    authorizer: Authorizer | None,
    options: Sequence[tuple[str, int | str]] = (),
) -> RpcServer:
    """The gRPC server of a front."""
    service = Service(
        _SERVICE, lambda server: _add_service(server, inference, host), resource_function(settings.project)
    )
    return RpcServer(settings, [service], authorizer=authorizer, options=[*GRPC_OPTIONS, *options])


def _add_service(server: grpc.aio.Server, inference: InferenceMethods, host: EngineHost) -> None:
    """Answer every method of the service: the inference methods here, all others by the engine host."""
    table: dict[str, grpc.RpcMethodHandler[Any, Any]] = handlers(inference)
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.name in table:
            continue
        table[method.name] = grpc.unary_unary_rpc_method_handler(
            _managed(host, method.name),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, table),))


def _managed(host: EngineHost, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        return await host.manage(method, request)

    return call
