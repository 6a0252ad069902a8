"""Prometheus metrics of the cluster as a whole; each agent serves its own GPUs' in detail."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.aggregator.cluster import Cluster, Node, NodeState
from enginehouse_telemetry.aggregator.consumers import Consumers
from enginehouse_telemetry.aggregator.crowd import Crowd
from enginehouse_telemetry.aggregator.pacer import Pacer

# Suffix of `enginehouse_cluster_gpu_`, the sample's field, what to divide the sum by, what it says.
_SUMS = (
    ("utilization_ratio_sum", "utilization_gpu_percent", 100.0, "Sum of the GPUs' utilization, each from 0 to 1."),
    ("memory_used_bytes", "memory_used_bytes", 1.0, "GPU memory in use."),
    ("memory_total_bytes", "memory_total_bytes", 1.0, "GPU memory."),
    ("power_watts", "power_draw_watts", 1.0, "Power of the GPUs."),
    ("power_limit_watts", "power_limit_watts", 1.0, "Power that the GPUs may take."),
)


class ClusterMetrics(Collector):
    """Sums by product and namespace; what of the nodes, the agents and the readers."""

    def __init__(self, cluster: Cluster, crowd: Crowd, consumers: Consumers, pacer: Pacer) -> None:
        self._cluster, self._crowd, self._consumers, self._pacer = cluster, crowd, consumers, pacer

    def collect(self) -> Iterator[Metric]:
        nodes = self._cluster.nodes()
        yield from _of_nodes(nodes)
        yield from _of_gpus([gpu for node in nodes if _speaks(node) and node.sample for gpu in node.sample.gpus])
        yield from self._of_agents()
        yield from self._of_readers()

    def _of_agents(self) -> Iterator[Metric]:
        crowd, counts = self._crowd, self._crowd.counts
        agents = GaugeMetricFamily("enginehouse_aggregator_agents", "Agents that are known.", labels=("connected",))
        agents.add_metric(("true",), crowd.connected)
        agents.add_metric(("false",), crowd.agents - crowd.connected)
        yield agents
        for name, text, value in (
            ("samples", "Samples received.", counts.samples),
            ("received_bytes", "Bytes of the samples received.", counts.bytes),
            ("skipped_samples", "Samples that agents left out because the aggregator was slow.", counts.skipped),
            (
                "refused_samples",
                "Samples of nodes over ENGINEHOUSE_MAX_NODES or of other projects.",
                self._cluster.refused,
            ),
            ("reconnects", "Agents' streams that ended.", crowd.reconnects),
            ("lag_seconds", "Sum of the time from taking to receiving a sample.", max(0.0, counts.lag_sum)),
        ):
            yield CounterMetricFamily(f"enginehouse_aggregator_{name}", text, value=value)
        yield GaugeMetricFamily(
            "enginehouse_aggregator_kept_bytes", "Bytes of the newest samples.", self._cluster.bytes
        )

    def _of_readers(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("enginehouse_aggregator_streams", "Open streams.", len(self._consumers))
        yield CounterMetricFamily(
            "enginehouse_aggregator_cut_off_streams", "Streams cut off for a slow reader.", self._consumers.cut_off
        )


def _speaks(node: Node) -> bool:
    return node.state in (NodeState.LIVE, NodeState.LATE)


def _of_nodes(nodes: Iterable[Node]) -> Iterator[Metric]:
    states = Counter(node.state for node in nodes)
    family = GaugeMetricFamily("enginehouse_cluster_nodes", "Nodes.", labels=("state",))
    for state in (NodeState.LIVE, NodeState.LATE, NodeState.LOST):
        family.add_metric((state.value,), states[state])
    yield family


def _of_gpus(gpus: Iterable[pb.GpuSample]) -> Iterator[Metric]:
    present: Counter[tuple[str, str]] = Counter()
    allocated: Counter[str] = Counter()
    sums: dict[str, Counter[str]] = {suffix: Counter() for suffix, *_ in _SUMS}
    namespaces: defaultdict[str, set[str]] = defaultdict(set)
    for gpu in gpus:
        present[gpu.product, "lost" if gpu.state == pb.DEVICE_STATE_LOST else "ok"] += 1
        allocated[gpu.product] += bool(gpu.allocations)
        for held in gpu.allocations:
            namespaces[held.namespace].add(gpu.uuid)
        for suffix, field, divisor, _ in _SUMS:
            if gpu.HasField(field):  # type: ignore[arg-type]
                sums[suffix][gpu.product] += getattr(gpu, field) / divisor
    yield _family("enginehouse_cluster_gpus", "GPUs.", ("product", "state"), present)
    yield _family(
        "enginehouse_cluster_gpus_allocated", "GPUs that a pod holds, or a part of.", ("product",),
        {(product,): count for product, count in allocated.items()},
    )  # fmt: skip
    for suffix, _, _, text in _SUMS:
        values = {(product,): value for product, value in sums[suffix].items()}
        yield _family(f"enginehouse_cluster_gpu_{suffix}", text, ("product",), values)
    yield _family(
        "enginehouse_namespace_gpus", "GPUs that a namespace's pods hold, or a part of.", ("namespace",),
        {(namespace,): len(uuids) for namespace, uuids in namespaces.items()},
    )  # fmt: skip


def _family(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
