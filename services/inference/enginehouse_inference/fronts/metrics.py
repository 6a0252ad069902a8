"""Prometheus metrics of the fronts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse_inference.fronts.servers import FrontServers


class FrontMetrics(Collector):
    """How many fronts there are, and how many there were. Read in the thread that answers a scrape."""

    def __init__(self, fronts: FrontServers) -> None:
        self._fronts = fronts

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "enginehouse_inference_fronts", "Processes that share the port now.", value=self._fronts.running
        )
        yield CounterMetricFamily(
            "enginehouse_inference_front_deaths", "Fronts that died and were replaced.", value=self._fronts.deaths
        )
