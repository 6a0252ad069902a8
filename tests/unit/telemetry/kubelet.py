"""A kubelet's pod-resources socket: a real gRPC server that answers with recorded or given bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import grpc
import grpc.aio

RECORDED = Path(__file__).parents[2] / "recordings" / "k8s" / "10-pod-resources.jsonl"


def recorded_list() -> bytes:
    """What a real kubelet answered to `List`."""
    for line in RECORDED.read_text().splitlines():
        exchange = json.loads(line)
        if exchange["request"]["method"] == "List":
            return base64.b64decode(exchange["response_base64"])
    raise AssertionError("the recording has no List")


class Kubelet:
    """Serves `v1.PodResourcesLister/List` at `socket` between `start` and `stop`."""

    def __init__(self, socket: Path, answer: bytes) -> None:
        self.socket, self.answer = socket, answer
        self.calls = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        server = self._server = grpc.aio.server()
        handlers = {"List": grpc.unary_unary_rpc_method_handler(self._list)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers)])
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
        self.socket.unlink(missing_ok=True)

    async def _list(self, request: bytes, context: object) -> bytes:
        assert request == b""
        self.calls += 1
        return self.answer
