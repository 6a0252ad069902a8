"""A service for tests: announces a port and answers the health check, or misbehaves as FAKE_<NAME> says."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc
import grpc.aio

from enginehouse.rpc.announce import announce_file


class Health(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def check(request: bytes, context: object) -> bytes:
            return b"\x08\x01"

        return grpc.unary_unary_rpc_method_handler(check)


async def main(name: str) -> None:
    behaviour = os.environ.get(f"FAKE_{name.upper()}", "")
    print(f"{name} starts", os.environ["ENGINEHOUSE_PORT"], os.environ.get("ENGINEHOUSE_OPTIMIZER", ""), flush=True)
    if behaviour == "crash":
        raise RuntimeError("no such device")
    if behaviour == "hang":
        await asyncio.sleep(60)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set if behaviour != "stubborn" else lambda: None)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Health(),))
    address = f"127.0.0.1:{os.environ['ENGINEHOUSE_PORT']}"
    if certificate := os.environ.get("ENGINEHOUSE_TLS_CERTIFICATE"):
        pair = (Path(os.environ["ENGINEHOUSE_TLS_KEY"]).read_bytes(), Path(certificate).read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    announce_file(os.environ)({"port": port})
    await stop.wait()
    await server.stop(0)
    print("drained", flush=True)


asyncio.run(main(sys.argv[1]))
