"""Counts and times of one served version, as ModelStatistics and the metrics report them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2

from enginehouse.errors import (
    CancelledError,
    DeadlineExceededError,
    EnginehouseError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers.link import InferenceResult
from enginehouse_inference.batching.batcher import Answer
from enginehouse_inference.models.histogram import DURATION_BOUNDS_NS, ROWS_BOUNDS, Histogram

# Triton's reasons, in its order: the queue's, the caller's own, the engine's or its worker's, all others.
REJECTED, CANCELED, BACKEND, OTHER = REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_REASON_OF: tuple[tuple[type[EnginehouseError], str], ...] = (
    (ResourceExhaustedError, REJECTED),
    (DeadlineExceededError, REJECTED),
    (CancelledError, CANCELED),
    (InternalError, BACKEND),
    (UnavailableError, BACKEND),
)


def reason_of(error: BaseException) -> str:
    """The reason, of Triton's four, for which a request failed."""
    return next((reason for kind, reason in _REASON_OF if isinstance(error, kind)), OTHER)


def _durations() -> Histogram:
    return Histogram(DURATION_BOUNDS_NS)


@dataclass
class Duration:
    """How often, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def to_proto(self) -> service_pb2.StatisticDuration:
        return service_pb2.StatisticDuration(count=self.count, ns=self.ns)


@dataclass
class _BatchTimes:
    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


@dataclass
class Histograms:
    """Of requests: `request` (arrival to response), `queue`. Of batches: `rows`, and its parts in the worker."""

    request: Histogram = field(default_factory=_durations)
    queue: Histogram = field(default_factory=_durations)
    rows: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    input: Histogram = field(default_factory=_durations)
    compute: Histogram = field(default_factory=_durations)
    output: Histogram = field(default_factory=_durations)


@dataclass
class Statistics:
    """Since the version was first served; loading it anew keeps them."""

    inferences: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    batches: dict[int, _BatchTimes] = field(default_factory=dict)
    # How many requests failed, by reason.
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    histograms: Histograms = field(default_factory=Histograms)

    def executed(self, rows: int, result: InferenceResult) -> None:
        """A batch of `rows` ran."""
        self.executions += 1
        times = self.batches.setdefault(rows, _BatchTimes())
        times.input.add(result.input_ns)
        times.infer.add(result.compute_ns)
        times.output.add(result.output_ns)
        histograms = self.histograms
        histograms.rows.add(rows)
        histograms.input.add(result.input_ns)
        histograms.compute.add(result.compute_ns)
        histograms.output.add(result.output_ns)

    def answered(self, rows: int, answer: Answer, total_ns: int) -> None:
        """A request of `rows` was answered; `total_ns` from its arrival to its response.

        One that was answered from the cache is a success and no inference, as in Triton.
        """
        self.last_inference_ms = int(time.time() * 1000)
        self.success.add(total_ns)
        self.histograms.request.add(total_ns)
        if answer.cached:
            self.cache_hit.add(total_ns)
            return
        self.inferences += rows
        self.queue.add(answer.queue_ns)
        self.compute_input.add(answer.input_ns)
        self.compute_infer.add(answer.compute_ns)
        self.compute_output.add(answer.output_ns)
        self.histograms.queue.add(answer.queue_ns)

    def failed(self, error: BaseException, total_ns: int) -> None:
        """A request failed after `total_ns`."""
        self.failures[reason_of(error)] += 1
        self.fail.add(total_ns)

    def cancelled(self, total_ns: int) -> None:
        """A request's caller went away after `total_ns`."""
        self.failures[CANCELED] += 1
        self.cancel.add(total_ns)

    def to_proto(self, name: str, version: str) -> service_pb2.ModelStatistics:
        """The protocol's message."""
        message = service_pb2.ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_inference_ms,
            inference_count=self.inferences,
            execution_count=self.executions,
            inference_stats=service_pb2.InferStatistics(
                success=self.success.to_proto(),
                fail=self.fail.to_proto(),
                queue=self.queue.to_proto(),
                compute_input=self.compute_input.to_proto(),
                compute_infer=self.compute_infer.to_proto(),
                compute_output=self.compute_output.to_proto(),
                cache_hit=self.cache_hit.to_proto(),
            ),
        )
        for rows, times in sorted(self.batches.items()):
            message.batch_stats.add(
                batch_size=rows,
                compute_input=times.input.to_proto(),
                compute_infer=times.infer.to_proto(),
                compute_output=times.output.to_proto(),
            )
        return message
