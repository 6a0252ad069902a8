"""Names whose addresses change, as a headless Service's do when pods come and go: real servers, sockets and DNS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import grpc.aio
import numpy as np
import pytest
from client_servers import Blobs, Inference, ServingConfigs
from name_server import name_server
from tritonclient.grpc import service_pb2_grpc

from enginehouse import AsyncClient, Balancing
from enginehouse.client.connection import Endpoint
from enginehouse.errors import UnavailableError
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc

WAIT_SECONDS = 25.0  # gRPC's own pause between look-ups is 30 s


class Pod:
    """A server on a loopback address of its own, at the port that all pods have."""

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self.served = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> int:
        pod = self

        class Counted(Inference):
            async def ModelInfer(self, request: Any, context: Any) -> Any:
                pod.served += 1
                await asyncio.sleep(0.002)
                return await super().ModelInfer(request, context)

        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Counted(ServingConfigs()), self._server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(Blobs(), self._server)
        bound = self._server.add_insecure_port(f"{self.ip}:{port}")
        await self._server.start()
        return int(bound)

    async def stop(self) -> None:
        """Drain, as a pod that gets SIGTERM does."""
        assert self._server is not None
        await self._server.stop(5)


async def test_requests_follow_the_pods_of_a_headless_service(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = [Pod(f"127.0.0.{number}") for number in (2, 3, 4)]
    port = await pods[0].start()
    await pods[1].start(port)
    listed: list[str] = ["127.0.0.2", "127.0.0.3"]
    real = socket.getaddrinfo

    def look(host: Any, *args: Any, **options: Any) -> Any:
        if host != "enginehouse-inference.test.svc":
            return real(host, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in listed]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    failures: list[Exception] = []
    done = asyncio.Event()
    x = np.ones((1, 3), np.float32)

    async def caller(client: AsyncClient) -> None:
        while not done.is_set():
            try:
                await client.infer("double", x)
            except Exception as error:
                failures.append(error)

    async def all_serve(wanted: Sequence[Pod]) -> None:
        before = [pod.served for pod in wanted]
        for _ in range(int(WAIT_SECONDS / 0.02)):
            if all(pod.served > count + 5 for pod, count in zip(wanted, before, strict=True)):
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"not all serve: {[(pod.ip, pod.served) for pod in wanted]}")

    balancing = Balancing(resolve_interval=0.1)
    address = f"enginehouse-inference.test.svc:{port}"
    async with AsyncClient(inference=address, balancing=balancing, timeout=20) as client:
        callers = [asyncio.create_task(caller(client)) for _ in range(4)]
        await all_serve(pods[:2])
        # A rolling update: a new pod, then an old one leaves the Service, and ends.
        await pods[2].start(port)
        listed[:] = ["127.0.0.3", "127.0.0.4"]
        await all_serve(pods[1:])
        await pods[0].stop()
        # A pod that dies before the Service says so.
        await pods[1].stop()
        await all_serve(pods[2:])
        done.set()
        await asyncio.gather(*callers)
    await pods[2].stop()
    assert failures == []


async def test_one_server_that_moves_is_found_again() -> None:
    """The optimizer's pod, replaced: its name has the old address for a while."""
    old, new = Pod("127.0.0.2"), Pod("127.0.0.3")
    port = await old.start()
    async with name_server("127.0.0.2") as names:
        endpoint = Endpoint(f"dns://127.0.0.1:{names.port}/optimizer.test:{port}", timeout=2, tls=None)

        async def call() -> bool:
            try:
                stub = endpoint.stub(blobs_pb2_grpc.BlobsStub)
                await endpoint.unary(stub.FindBlob, blobs_pb2.FindBlobRequest(digest="x"))
                return True
            except UnavailableError:
                return False

        async def answered_or_asked(times: float) -> bool:
            for _ in range(int(WAIT_SECONDS / 0.05)):
                if await call():
                    return True
                if names.asked >= times:
                    return False
                await asyncio.sleep(0.05)
            pytest.fail(f"asked {names.asked} times for the name, and no answer")

        assert await call()
        await old.stop()
        assert not await answered_or_asked(3)
        await new.start(port)
        names.ips = (new.ip,)
        assert await answered_or_asked(float("inf"))
        await endpoint.close()
    await new.stop()
