"""An error whose message is as long as what a stranger sent reaches the client as it is, not as another error."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from enginehouse.errors import NotFoundError
from enginehouse.rpc.authorization import AllowAll
from enginehouse.rpc.interceptor import CallChain
from enginehouse.rpc.status import DETAIL_CHARACTERS, MESSAGE_CHARACTERS, from_rpc_error, shortened


@pytest.mark.parametrize("text", ["x" * 100_000, "\u0142" * 30_000, "\n" * 5000])
async def test_a_long_message_is_shortened_on_the_wire(text: str) -> None:
    error = await _answer(f"there is no {text}: expected another name", {"model": text})
    assert type(error) is NotFoundError
    assert error.message.startswith("there is no ") and error.message.endswith(": expected another name")
    assert len(error.message) < MESSAGE_CHARACTERS + 50
    assert len(error.details["model"]) < DETAIL_CHARACTERS + 50


async def test_a_message_of_usual_length_stays() -> None:
    message = "x" * MESSAGE_CHARACTERS
    assert (await _answer(message, {})).message == message == shortened(message)


async def _answer(message: str, details: dict[str, str]) -> Any:
    async def fail(request: bytes, context: Any) -> bytes:
        raise NotFoundError(message, details=details)

    chain = CallChain(authorizer=AllowAll(), max_concurrent_rpcs=10, resources={})
    server = grpc.aio.server(interceptors=[chain])
    handlers = {"Fail": grpc.unary_unary_rpc_method_handler(fail)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Service/Fail")(b"")
            return from_rpc_error(caught.value)
    finally:
        await server.stop(0)
