"""Load on a service: a closed loop, or requests offered at a rate. Failures are counted, never raised."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from enginehouse.bench.statistics import latency_of
from enginehouse.errors import EnginehouseError
from enginehouse.tune.goal import Level

Call = Callable[[], Awaitable[object]]

# More than these in flight, and an offered request is not sent but counted as failed: the service is far behind.
MAX_BEHIND = 4096


@dataclass(frozen=True)
class Window:
    """How long a load is kept up: `seconds`, and longer where that is fewer than `requests`, up to `at_most` seconds.
    A 99th percentile of few requests is their worst."""

    seconds: float = 1.0
    requests: int = 100
    at_most: float = 5.0

    def longer(self, factor: float) -> Window:
        return Window(self.seconds * factor, round(self.requests * factor), self.at_most * factor)


class _Counts:
    def __init__(self) -> None:
        self.latencies_ns: list[int] = []
        self.failed = 0
        self.error = ""

    async def one(self, call: Call, since_ns: int) -> None:
        try:
            await call()
        except EnginehouseError as error:
            self.failed += 1
            self.error = self.error or error.message
            return
        self.latencies_ns.append(time.perf_counter_ns() - since_ns)

    def level(self, concurrency: int | None, rate: float | None, rows: int, seconds: float, cpu: float) -> Level:
        answered = len(self.latencies_ns)
        return Level(
            concurrency=concurrency,
            rate=rate,
            rows=rows,
            requests=answered,
            failed=self.failed,
            inferences_per_second=answered * rows / seconds,
            latency=latency_of(self.latencies_ns) if answered else None,
            generator_cpu=cpu / seconds,
            error=self.error,
        )


async def closed_loop(call: Call, *, concurrency: int, rows: int, window: Window) -> Level:
    """Keep `concurrency` requests in flight: each client sends its next when its last was answered."""
    counts = _Counts()
    begun, cpu = time.perf_counter(), time.process_time()

    def over() -> bool:
        passed = time.perf_counter() - begun
        few = len(counts.latencies_ns) + counts.failed < window.requests
        return passed >= (window.at_most if few else window.seconds)

    async def client() -> None:
        while not over():
            failed = counts.failed
            await counts.one(call, time.perf_counter_ns())
            if counts.failed > failed:
                await asyncio.sleep(0.01)  # a refusal comes at once: do not spin on it

    await _all([asyncio.ensure_future(client()) for _ in range(concurrency)])
    return counts.level(concurrency, None, rows, time.perf_counter() - begun, time.process_time() - cpu)


async def offered(call: Call, *, rate: float, rows: int, window: Window, seed: int = 0) -> Level:
    """Send `rate` requests a second, at random times, however many wait. Latency counts from when a request was due, so
    that a slow service cannot hide behind a sender that waits for it.

    The times are a Poisson process's, given how many came: exactly the rate is offered.
    """
    counts = _Counts()
    generator = random.Random(seed)
    begun, begun_ns, cpu = time.perf_counter(), time.perf_counter_ns(), time.process_time()
    length = min(max(window.seconds, window.requests / rate), window.at_most)
    times = sorted(generator.uniform(0, length) for _ in range(max(1, round(rate * length))))
    sent: set[asyncio.Task[None]] = set()
    try:
        for due in times:
            pause = begun + due - time.perf_counter()
            await asyncio.sleep(max(0.0, pause))
            if len(sent) >= MAX_BEHIND:
                counts.failed += 1
                counts.error = counts.error or f"{MAX_BEHIND} requests are waiting"
                continue
            task = asyncio.ensure_future(counts.one(call, begun_ns + round(due * 1e9)))
            sent.add(task)
            task.add_done_callback(sent.discard)
        await asyncio.gather(*sent)
    finally:
        await _all(list(sent), cancel=True)
    # A service that keeps up has answered by the end, or a moment later.
    seconds = max(length, time.perf_counter() - begun)
    return counts.level(None, len(times) / length, rows, seconds, time.process_time() - cpu)


async def _all(tasks: list[asyncio.Task[None]], *, cancel: bool = False) -> None:
    """Wait for all; when this is cancelled, or is to cancel, none goes on behind it."""
    try:
        if not cancel:
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
