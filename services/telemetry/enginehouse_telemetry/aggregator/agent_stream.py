"""One agent's stream: opened again whenever it ends, sooner after a good one than after a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc.aio

from enginehouse.errors import EnginehouseError
from enginehouse.rpc.channels import Credentials
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.aggregator.pacer import Pacer

STREAM_SAMPLES = "/enginehouse.v1.Telemetry/StreamSamples"

FIRST_WAIT, LAST_WAIT = 0.2, 10.0

# Of one sample: a node with 16 GPUs and a hundred processes comes to 20 KB.
MAX_SAMPLE_BYTES = 4 << 20

# A node that is switched off leaves its connection open: pings find out. The agents' servers allow one in 5 s.
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_SAMPLE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # What may be on its way without being read, a few samples: the newest wait at the agent, which drops older ones.
    ("grpc.http2.lookahead_bytes", 8 << 10),
    ("grpc.http2.bdp_probe", 0),
)


def sized_response(data: bytes) -> tuple[pb.StreamSamplesResponse, int]:
    """A response with the bytes that it took."""
    return pb.StreamSamplesResponse.FromString(data), len(data)


# Told each response, its bytes and the agent's address.
OnResponse = Callable[[pb.StreamSamplesResponse, int, str], None]
# Told why the stream is down.
OnProblem = Callable[[str], None]


class AgentStream:
    """Reads one agent until its task is cancelled."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        request: pb.StreamSamplesRequest,
        *,
        pacer: Pacer,
        on_response: OnResponse,
        on_problem: OnProblem,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self.address = address
        self.connected = False
        self.reconnects = 0
        self._credentials, self._request = credentials, request
        self._pacer = pacer
        self._on_response, self._on_problem = on_response, on_problem
        self._first_wait = first_wait

    async def run(self) -> None:
        """Stream, and stream again."""
        wait = self._first_wait
        while True:
            try:
                # Each time a channel of its own, which begins with the certificates of now.
                async with self._credentials.open(self.address, _OPTIONS) as channel:
                    await self._read(channel)
                problem = "the agent ended the stream"
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            except EnginehouseError as error:
                problem = error.message
            if self.connected:  # it was a good one: servers close old connections
                wait = self._first_wait
            self.connected = False
            self.reconnects += 1
            self._on_problem(problem)
            # Spread, so that a thousand agents do not come back in the same moment.
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, LAST_WAIT)

    async def _read(self, channel: grpc.aio.Channel) -> None:
        method: Any = channel.unary_stream(
            STREAM_SAMPLES,
            request_serializer=pb.StreamSamplesRequest.SerializeToString,
            response_deserializer=sized_response,
        )
        call = method(self._request)
        try:
            async for response, size in call:
                self.connected = True
                self._on_response(response, size, self.address)
                if self._pacer.pause:
                    await asyncio.sleep(self._pacer.pause)
        finally:
            call.cancel()
