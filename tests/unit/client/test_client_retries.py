"""Which calls a client sends again when a server was away for a moment."""

from __future__ import annotations

from enginehouse.client.connection import _RETRIED
from enginehouse.v1 import blobs_pb2, engines_pb2, models_pb2, optimizer_pb2, serving_pb2, store_pb2, telemetry_pb2

MESSAGES = (blobs_pb2, engines_pb2, models_pb2, optimizer_pb2, serving_pb2, store_pb2, telemetry_pb2)
METHODS = {
    service.full_name: {method.name for method in service.methods if not method.server_streaming}
    for module in MESSAGES
    for service in module.DESCRIPTOR.services_by_name.values()
}


def test_every_read_is_sent_again_and_every_name_exists() -> None:
    retried = {service: set(methods) for service, methods in _RETRIED if service in METHODS}
    for service, methods in METHODS.items():
        reads = {name for name in methods if name.startswith(("Get", "List", "Find"))}
        assert reads <= retried[service], service
        assert retried[service] <= methods, service
