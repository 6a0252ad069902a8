"""Registers GRPCInferenceService on a server, by the descriptors in tritonclient's stubs."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from tritonclient.grpc import service_pb2

from enginehouse_inference.service.inference import InferenceMethods, handlers
from enginehouse_inference.service.management import ManagementMethods

SERVICE = "inference.GRPCInferenceService"


def add_service(server: grpc.aio.Server, inference: InferenceMethods, management: ManagementMethods) -> None:
    """Answer every method of the service."""
    table: dict[str, grpc.RpcMethodHandler[Any, Any]] = handlers(inference)
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.name in table:
            continue
        table[method.name] = grpc.unary_unary_rpc_method_handler(
            getattr(management, method.name),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, table),))
