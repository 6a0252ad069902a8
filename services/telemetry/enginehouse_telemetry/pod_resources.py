"""The kubelet's pod-resources API (`v1.PodResourcesLister`): which container holds which device of this node.

The messages are the part of the published API that says who holds what; other fields are skipped when they are read.
They are described here and live in a pool of their own: the API's package is called plainly `v1`, and whoever else
brings a copy of it into the process would clash with generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

LIST = "/v1.PodResourcesLister/List"

# The kubelet's own limit for an answer.
_MAX_BYTES = 16 << 20

_TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_MESSAGE = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE

# Message: its fields as (number, name, type of message or None for text, repeated).
_MESSAGES: dict[str, tuple[tuple[int, str, str | None, bool], ...]] = {
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": ((1, "pod_resources", "PodResources", True),),
    "PodResources": (
        (1, "name", None, False),
        (2, "namespace", None, False),
        (3, "containers", "ContainerResources", True),
    ),
    "ContainerResources": ((1, "name", None, False), (2, "devices", "ContainerDevices", True)),
    "ContainerDevices": ((1, "resource_name", None, False), (2, "device_ids", None, True)),
}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, repeated in fields:
            added = message.field.add(number=number, name=field, type=_MESSAGE if kind else _TEXT)
            added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
            if kind:
                added.type_name = f".v1.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}"))  # type: ignore[no-untyped-call, unused-ignore]
        for name in _MESSAGES
    }


_CLASSES = _message_classes()


@dataclass(frozen=True, order=True)
class Holding:
    """A container holds a device. `resource` and `device` are the device plugin's words."""

    namespace: str
    pod: str
    container: str
    resource: str
    device: str


def holdings(answer: bytes) -> tuple[Holding, ...]:
    """What a serialized `ListPodResourcesResponse` says, sorted: the kubelet's order differs from call to call.

    Raises:
        google.protobuf.message.DecodeError: `answer` is no such message.
    """
    response = _CLASSES["ListPodResourcesResponse"].FromString(answer)
    return tuple(
        sorted(
            Holding(pod.namespace, pod.name, container.name, devices.resource_name, device)
            for pod in response.pod_resources
            for container in pod.containers
            for devices in container.devices
            for device in devices.device_ids
        )
    )


class PodResources:
    """Asks the kubelet over its Unix socket. The channel finds a socket that was made anew by itself."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", _MAX_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2_000),
                ("grpc.default_authority", "localhost"),  # the socket's path is no authority that Go accepts
            ],
        )
        self._list: Any = self._channel.unary_unary(LIST)

    async def list(self, timeout: float) -> tuple[Holding, ...]:
        """Who holds what, now. `timeout` in seconds.

        Raises:
            grpc.aio.AioRpcError: the kubelet does not answer, or not well.
            google.protobuf.message.DecodeError: it answers something else.
        """
        request = _CLASSES["ListPodResourcesRequest"]().SerializeToString()
        return holdings(await self._list(request, timeout=timeout))

    async def close(self) -> None:
        await self._channel.close()
