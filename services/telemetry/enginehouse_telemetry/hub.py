"""What the service knows: the newest sample, the past ones and who streams. Lives on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.allocations import NO_ALLOCATIONS, Allocations
from enginehouse_telemetry.attribution import Attribution
from enginehouse_telemetry.history import History, Kept
from enginehouse_telemetry.messages import sample_message
from enginehouse_telemetry.readings import NodeReading
from enginehouse_telemetry.streams import Streams

# A sampler is stalled when it is this many periods, and this many seconds, late: a driver call hangs.
STALLED_PERIODS, STALLED_SECONDS = 5, 15.0


class Hub:
    """Takes readings from the sampler.

    Args:
        node: the node's resource name.
        attribution: who holds the GPUs; nobody when None.
    """

    def __init__(
        self,
        node: str,
        history: History,
        streams: Streams,
        clock: Callable[[], float] = time.monotonic,
        *,
        attribution: Attribution | None = None,
    ) -> None:
        self.node = node
        self.history = history
        self.streams = streams
        self.attribution = attribution or Attribution()
        self.latest: pb.Sample | None = None
        self.latest_reading: NodeReading | None = None
        self.latest_allocations: Allocations = NO_ALLOCATIONS
        self._clock = clock
        self._heard = clock()
        self._first = asyncio.Event()

    def publish(self, reading: NodeReading) -> None:
        """Keep a reading and pass it on."""
        allocations = self.attribution.allocations(reading.gpus)
        sample = sample_message(reading, self.node, allocations)
        self.latest, self.latest_reading, self.latest_allocations = sample, reading, allocations
        self._heard = self._clock()
        self.history.append(Kept(reading.sequence, reading.time_ns, reading.monotonic, sample.SerializeToString()))
        self.streams.publish(sample, reading.monotonic)
        self._first.set()

    @property
    def stalled_seconds(self) -> float:
        """For how long there has been no sample that should have been; 0 when all is well."""
        silent = self._clock() - self._heard
        return silent if silent > max(STALLED_SECONDS, STALLED_PERIODS * self.streams.period) else 0.0

    async def wait_for_first(self, timeout: float) -> bool:
        """Wait for the first sample; False when there is none after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._first.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True
