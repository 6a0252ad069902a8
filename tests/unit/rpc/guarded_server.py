"""A real server that asks who calls, and the calls that tests make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.authorization import Principal, current_principal
from enginehouse.rpc.server import RpcServer, Service
from enginehouse.rpc.settings import ServerSettings
from enginehouse.rpc.static_tokens import token_line
from enginehouse.rpc.status import from_rpc_error
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc

CI_TOKEN = "ci-token-ci-token-ci-token-ci-token"
VIEWER_TOKEN = "viewer-token-viewer-token-viewer-token"
ROLES = """
bindings:
  - roles: [submit]
    principals: [ci]
    projects: [mine]
  - roles: [read]
    groups: [viewers]
  - roles: [read]
    principals: ["system:serviceaccount:apps:web"]
  - roles: [read]
    principals: [client]
"""


class Blobs(blobs_pb2_grpc.BlobsServicer):
    """Answers every call and remembers who made it."""

    def __init__(self) -> None:
        self.principals: list[Principal] = []

    async def FindBlob(self, request: Any, context: Any) -> blobs_pb2.FindBlobResponse:
        self.principals.append(current_principal())
        return blobs_pb2.FindBlobResponse(complete=True)

    async def WriteBlob(self, request_iterator: Any, context: Any) -> blobs_pb2.WriteBlobResponse:
        count = 0
        async for _ in request_iterator:
            count += 1
        self.principals.append(current_principal())
        return blobs_pb2.WriteBlobResponse(committed_bytes=count)

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blobs_pb2.ReadBlobResponse]:
        self.principals.append(current_principal())
        for _ in range(3):
            yield blobs_pb2.ReadBlobResponse(data=b"x")


@dataclasses.dataclass
class Guarded:
    """A server and how to call it."""

    server: RpcServer
    blobs: Blobs
    address: str
    channel: grpc.aio.Channel

    def find(self, token: str = "", parent: str = "projects/mine", **fields: Any) -> Any:
        request = blobs_pb2.FindBlobRequest(parent=parent, **fields)
        return blobs_pb2_grpc.BlobsStub(self.channel).FindBlob(request, metadata=bearer(token), timeout=10)

    def write(self, token: str = "", parent: str = "projects/mine") -> Any:
        messages = iter([blobs_pb2.WriteBlobRequest(parent=parent), blobs_pb2.WriteBlobRequest(data=b"x")])
        return blobs_pb2_grpc.BlobsStub(self.channel).WriteBlob(messages, metadata=bearer(token), timeout=10)

    def read(self, token: str = "", parent: str = "projects/mine") -> Any:
        request = blobs_pb2.ReadBlobRequest(parent=parent)
        return blobs_pb2_grpc.BlobsStub(self.channel).ReadBlob(request, metadata=bearer(token), timeout=10)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


@asynccontextmanager
async def guarded(
    settings: dict[str, Any], credentials: Callable[[], grpc.ChannelCredentials] | None = None
) -> AsyncIterator[Guarded]:
    """A server with these settings, and a channel to it."""
    blobs = Blobs()
    service = Service("enginehouse.v1.Blobs", lambda server: blobs_pb2_grpc.add_BlobsServicer_to_server(blobs, server))
    server = RpcServer(ServerSettings(**settings), [service])
    address = f"127.0.0.1:{await server.start()}"
    channel = grpc.aio.secure_channel(address, credentials()) if credentials else grpc.aio.insecure_channel(address)
    try:
        async with channel:
            yield Guarded(server, blobs, address, channel)
    finally:
        await server.stop()


def with_tokens(folder: Path) -> dict[str, Any]:
    """Settings of a server with a token file and a roles file in a folder."""
    lines = ["# who may call", token_line(CI_TOKEN, "ci"), token_line(VIEWER_TOKEN, "eve", ("viewers", "others")), ""]
    (folder / "tokens").write_text("\n".join(lines))
    (folder / "roles.yaml").write_text(ROLES)
    return {"auth": "tokens", "auth_tokens_file": folder / "tokens", "auth_roles_file": folder / "roles.yaml"}


async def refused(call: Any) -> EnginehouseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)
