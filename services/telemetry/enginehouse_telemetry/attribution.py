"""Keeps up with who holds which device: asks the kubelet now and then, remembers its answer between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from enginehouse_telemetry.allocations import NO_ALLOCATIONS, Allocations, allocate
from enginehouse_telemetry.pod_resources import Holding
from enginehouse_telemetry.readings import GpuReading

# Seconds between questions, and how long an answer may take.
PERIOD, PATIENCE = 5.0, 5.0
# A kubelet that restarts is away for seconds, and pods live on: for so many the last answer stands.
KEEP_SECONDS = 60.0

_log = structlog.get_logger("attribution")


class HoldingSource(Protocol):
    """Says who holds what."""

    async def list(self, timeout: float) -> tuple[Holding, ...]: ...


class Attribution:
    """Who holds which GPU, as of the kubelet's last answer.

    Args:
        source: None on a node without Kubernetes: nobody holds anything.
    """

    def __init__(
        self,
        source: HoldingSource | None = None,
        *,
        period: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._period, self._clock = source, period, clock
        self._held: tuple[Holding, ...] = ()
        self._answered: float | None = None
        self._problem = "the kubelet has not been asked yet" if source else ""

    @property
    def asked(self) -> bool:
        """Whether there is a kubelet to ask."""
        return self._source is not None

    @property
    def works(self) -> bool:
        """Whether the kubelet's last answer was good."""
        return self.asked and not self._problem

    def allocations(self, gpus: Iterable[GpuReading]) -> Allocations:
        """Who holds which of these GPUs."""
        if self._source is None:
            return NO_ALLOCATIONS
        if self._problem and (self._answered is None or self._clock() - self._answered > KEEP_SECONDS):
            return Allocations(message=self._problem)
        old = f"{self._problem}; what it said last stands" if self._problem else ""
        return allocate(self._held, gpus, old)

    async def run(self) -> None:
        """Ask until cancelled."""
        if self._source is None:
            return
        while True:
            await self.ask(self._source)
            await asyncio.sleep(self._period)

    async def ask(self, source: HoldingSource) -> None:
        """Ask once."""
        try:
            self._held = await source.list(PATIENCE)
        except (grpc.aio.AioRpcError, DecodeError) as error:
            problem = f"the kubelet does not say who holds which GPU: {_reason(error)}"
            if problem != self._problem:
                _log.warning("no pod resources", reason=problem)
            self._problem = problem
        else:
            if self._problem:
                _log.info("pod resources", holdings=len(self._held))
            self._problem, self._answered = "", self._clock()


def _reason(error: grpc.aio.AioRpcError | DecodeError) -> str:
    if isinstance(error, DecodeError):
        return f"its answer is not a ListPodResourcesResponse ({error})"
    return f"{error.code().name}: {error.details()}"
