"""ModelStreamInfer, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.protocol.regions import Regions
from enginehouse_inference.refusals import Refusals
from enginehouse_inference.service.inference import InferenceMethods
from enginehouse_inference.service.local import LocalHost
from enginehouse_inference.tracing.trace import Tracing
from tritonclient.grpc import service_pb2


def request(identifier: str) -> bytes:
    return bytes(service_pb2.ModelInferRequest(model_name="m", id=identifier).SerializeToString())


class Unused:
    """Methods that a stream does not call."""


class Context:
    """What a stream uses of a call's context."""

    def invocation_metadata(self) -> None:
        return None


async def test_answers_come_in_order_and_nothing_waits_for_a_caller_who_has_gone() -> None:
    left = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        try:
            for number in range(5):
                yield request(str(number))
            await asyncio.Event().wait()
        finally:
            left.set()

    refusals = Refusals()
    host = LocalHost(Catalog(), Regions(), refusals, Tracing(), management=Unused())
    stream = InferenceMethods(host, 3).stream(requests(), Context())
    for number in range(5):
        answer = service_pb2.ModelStreamInferResponse.FromString(await stream.__anext__())
        assert answer.infer_response.id == str(number) and "no model" in answer.error_message
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(left.wait(), 5)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert refusals.counts() == [("NOT_FOUND", 5)]
