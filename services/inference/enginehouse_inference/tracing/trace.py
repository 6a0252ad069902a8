"""Which requests are traced, and what is noted of one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from enginehouse.errors import EnginehouseError
from enginehouse_inference.batching.batcher import Answer

# The W3C's name for where a caller's own trace stands: version, trace, span, flags.
TRACEPARENT = "traceparent"
_SAMPLED = 1


@dataclass(frozen=True)
class Step:
    """A part of a request's time, in nanoseconds since the epoch."""

    name: str
    start_ns: int
    end_ns: int


@dataclass
class Trace:
    """One request. Times are in nanoseconds since the epoch. `caller`: the metadata that says whose trace it is in."""

    method: str
    caller: Mapping[str, str]
    start_ns: int
    end_ns: int = 0
    model: str = ""
    version: str = ""
    identifier: str = ""
    rows: int = 0
    steps: list[Step] = field(default_factory=list)
    status: str = "OK"
    message: str = ""

    def named(self, model: str, version: str, identifier: str) -> None:
        """Which version it is for, and the caller's id of it."""
        self.model, self.version, self.identifier = model, version, identifier

    def answered(self, rows: int, queued_ns: int, answer: Answer) -> None:
        """It was computed.

        Steps are put one after the other from where it was queued: the worker measures them on a clock of its own. What
        lies between them and the answer is the way to the worker and back.

        Args:
            queued_ns: when it was given to the queue.
        """
        self.rows = rows
        start = queued_ns
        for name, duration in (
            ("queue", answer.queue_ns),
            ("compute_input", answer.input_ns),
            ("compute_infer", answer.compute_ns),
            ("compute_output", answer.output_ns),
        ):
            self.steps.append(Step(name, start, start + duration))
            start += duration

    def failed(self, error: BaseException) -> None:
        """It failed, or its caller went away."""
        if isinstance(error, EnginehouseError):
            self.status, self.message = error.reason, error.message
        elif isinstance(error, Exception):
            self.status, self.message = "INTERNAL", f"{type(error).__name__}: {error}"
        else:
            self.status = "CANCELLED"


class Exporter(Protocol):
    """Where finished traces go. `export` must not block."""

    def export(self, trace: Trace) -> None: ...

    async def close(self) -> None: ...


class Tracing:
    """Decides which requests are traced.

    A request whose caller traces it is traced; of the others every `rate`-th. `enabled` and `rate` may be changed while
    requests run.

    Args:
        exporter: None: nothing is ever traced.
    """

    def __init__(self, exporter: Exporter | None = None, rate: int = 1000) -> None:
        self.exporter = exporter
        self.enabled = exporter is not None
        self.rate = rate
        self._seen = 0

    def begin(self, method: str, metadata: Mapping[str, str]) -> Trace | None:
        """A trace to fill in and to `end`; None for a request that is not traced. Only called while `enabled`."""
        parent = metadata.get(TRACEPARENT, "")
        if parent:
            chosen = caller_samples(parent)
        else:
            self._seen += 1
            chosen = self._seen % self.rate == 0
        return Trace(method, metadata, time.time_ns()) if chosen else None

    def end(self, trace: Trace) -> None:
        """Note the end of a request and send its trace off."""
        trace.end_ns = time.time_ns()
        if self.exporter is not None:
            self.exporter.export(trace)

    async def close(self) -> None:
        """Send what was not sent yet."""
        if self.exporter is not None:
            await self.exporter.close()


def caller_samples(parent: str) -> bool:
    """Whether a `traceparent` says that its sender records the trace; False for one that is not well-formed."""
    parts = parent.strip().split("-")
    try:
        return len(parts) >= 4 and bool(int(parts[3], 16) & _SAMPLED)
    except ValueError:
        return False
