"""Prometheus metrics: requests under Triton's names and labels, so that dashboards made for it work; and our own.

Everything is read when it is asked for, from counts that serving keeps anyway. Labels are models, versions and workers
that this process knows, and fixed words: a caller cannot add one by what it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse_inference.devices.devices import Devices
from enginehouse_inference.models.catalog import Catalog, Slot
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.refusals import Refusals

LABELS = ("model", "version")


@dataclass(frozen=True)
class _Count:
    """A count under Triton's name. Its type is "unknown": the client library would append "_total" to a counter."""

    name: str
    value: Callable[[Statistics], float]
    help: str


@dataclass(frozen=True)
class _Spread:
    """A histogram of ours; `unit` is what its numbers are divided by."""

    name: str
    field: str
    unit: float
    help: str


TRITON_COUNTS: tuple[_Count, ...] = (
    _Count("nv_inference_request_success", lambda s: s.success.count, "Requests that were answered."),
    _Count("nv_inference_count", lambda s: s.inferences, "Inferences: a request of n rows counts n."),
    _Count("nv_inference_exec_count", lambda s: s.executions, "Batches that were run."),
    _Count(
        "nv_inference_request_duration_us", lambda s: s.success.ns // 1000, "Microseconds from request to response."
    ),
    _Count("nv_inference_queue_duration_us", lambda s: s.queue.ns // 1000, "Microseconds in queues."),
    _Count(
        "nv_inference_compute_input_duration_us",
        lambda s: s.compute_input.ns // 1000,
        "Microseconds of requests in which the worker made inputs ready.",
    ),
    _Count(
        "nv_inference_compute_infer_duration_us",
        lambda s: s.compute_infer.ns // 1000,
        "Microseconds of requests in which the engine ran.",
    ),
    _Count(
        "nv_cache_hit_duration_per_model",
        lambda s: s.cache_hit.ns // 1000,
        "Microseconds of requests that were answered from the response cache.",
    ),
    _Count(
        "nv_inference_compute_output_duration_us",
        lambda s: s.compute_output.ns // 1000,
        "Microseconds of requests in which the worker made outputs ready.",
    ),
)

SPREADS: tuple[_Spread, ...] = (
    _Spread("request_seconds", "request", 1e9, "Of answered requests, from arrival to response."),
    _Spread("queue_seconds", "queue", 1e9, "Of answered requests, time in queues: the front's and the worker's."),
    _Spread("batch_rows", "rows", 1, "Rows of batches."),
    _Spread("input_copy_seconds", "input", 1e9, "Of batches, making inputs ready in the worker, copies to the device."),
    _Spread("compute_seconds", "compute", 1e9, "Of batches, running the engine."),
    _Spread("output_copy_seconds", "output", 1e9, "Of batches, bringing outputs back to the host."),
)


class InferenceMetrics(Collector):
    """What this process serves, as metrics.

    Args:
        refusals: requests that no model's statistics count.
    """

    def __init__(self, catalog: Catalog, devices: Devices, refusals: Refusals) -> None:
        self._catalog, self._devices, self._refusals = catalog, devices, refusals

    def collect(self) -> Iterator[Metric]:
        """Called in the thread that answers a scrape while the event loop serves: it reads copies of lists, no more."""
        slots = [
            ((name, str(number)), slot) for name in self._catalog.names() for number, slot in self._catalog.slots(name)
        ]
        yield from _counts(slots)
        yield from _failures(slots)
        yield from _gauges(slots)
        yield from _histograms(slots)
        yield from _cache(slots)
        yield from self._of_process()

    def _of_process(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "enginehouse_inference_refused_requests",
            "Requests that reached no model: not understood, of an unknown model, or of one that is not ready.",
            labels=("code",),
        )
        for code, count in self._refusals.counts():
            refused.add_metric((code,), count)
        yield refused
        deaths = CounterMetricFamily(
            "enginehouse_inference_worker_deaths", "Workers that died or were killed and replaced.", labels=("worker",)
        )
        for name, count in self._devices.deaths().items():
            deaths.add_metric((name,), count)
        yield deaths


_Slots = list[tuple[tuple[str, str], Slot]]


def _counts(slots: _Slots) -> Iterator[Metric]:
    for count in TRITON_COUNTS:
        family = Metric(count.name, count.help, "unknown")
        for labels, slot in slots:
            family.add_sample(count.name, dict(zip(LABELS, labels, strict=True)), float(count.value(slot.statistics)))
        yield family


def _failures(slots: _Slots) -> Iterator[Metric]:
    family = Metric("nv_inference_request_failure", "Requests that failed, by reason.", "unknown")
    for (model, version), slot in slots:
        for reason, count in slot.statistics.failures.items():
            family.add_sample(family.name, {"model": model, "reason": reason, "version": version}, count)
    yield family


def _gauges(slots: _Slots) -> Iterator[Metric]:
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait in queues.", labels=LABELS)
    ready = GaugeMetricFamily(
        "enginehouse_inference_model_ready", "1 when the version can serve, else 0.", labels=LABELS
    )
    for labels, slot in slots:
        serving = slot.serving
        pending.add_metric(labels, serving.batcher.waiting if serving is not None else 0)
        ready.add_metric(labels, float(slot.ready))
    yield from (pending, ready)


def _cache(slots: _Slots) -> Iterator[Metric]:
    """Of the response cache: counts are of the engine that is loaded now, whose answers it keeps."""
    hits = Metric("nv_cache_num_hits_per_model", "Requests answered from the response cache.", "unknown")
    misses = Metric("nv_cache_num_misses_per_model", "Requests that it had no answer for.", "unknown")
    evictions = CounterMetricFamily("enginehouse_inference_cache_evictions", "Answers that made room.", labels=LABELS)
    size = GaugeMetricFamily("enginehouse_inference_cache_bytes", "Bytes of answers that it keeps.", labels=LABELS)
    for labels, slot in slots:
        if slot.serving is None:
            continue
        counts, named = slot.serving.cache.counts, dict(zip(LABELS, labels, strict=True))
        hits.add_sample(hits.name, named, counts.hits)
        misses.add_sample(misses.name, named, counts.misses)
        evictions.add_metric(labels, counts.evictions)
        size.add_metric(labels, counts.bytes)
    yield from (hits, misses, evictions, size)


def _histograms(slots: _Slots) -> Iterator[Metric]:
    for spread in SPREADS:
        family = HistogramMetricFamily(f"enginehouse_inference_{spread.name}", spread.help, labels=LABELS)
        for labels, slot in slots:
            buckets, total = getattr(slot.statistics.histograms, spread.field).cumulative(spread.unit)
            family.add_metric(labels, buckets, total)
        yield family
