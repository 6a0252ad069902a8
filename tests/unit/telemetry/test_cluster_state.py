"""Nodes that are live, late, lost and gone; what a filter and a slow reader get."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from enginehouse_telemetry.aggregator.cluster import Cluster, Node, NodeState
from enginehouse_telemetry.aggregator.consumers import Consumers
from enginehouse_telemetry.aggregator.filters import MAX_PATTERNS, ClusterFilter
from enginehouse_telemetry.aggregator.pacer import Pacer
from enginehouse_telemetry.aggregator.views import View
from enginehouse_telemetry.masks import ReadMask
from enginehouse_telemetry.streams import StreamsClosed

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import telemetry_cluster_pb2 as cluster_pb
from enginehouse.v1 import telemetry_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))

from cluster_world import PARENT, gpu, sample


class Watched:
    """A cluster with a clock, and what it tells."""

    def __init__(self, max_nodes: int = 10) -> None:
        self.now = 0.0
        self.told: list[tuple[str, NodeState]] = []
        self.cluster = Cluster(
            PARENT,
            late=3,
            lost=15,
            max_nodes=max_nodes,
            on_change=lambda node, at: self.told.append((node.id, node.state)),
            clock=lambda: self.now,
        )

    def take(self, made: pb.Sample, size: int = 10) -> Node | None:
        return self.cluster.take(made, size, "127.0.0.1:1")


def test_a_node_is_live_late_lost_and_back() -> None:
    world = Watched()
    node = world.take(sample("a"))
    assert node is not None and node.state is NodeState.LIVE
    world.now = 3.0
    world.cluster.sweep(["a"])
    assert node.state is NodeState.LIVE
    world.now = 4.0
    node.problem = "UNAVAILABLE: connection refused"
    world.cluster.sweep(["a"])
    assert node.state is NodeState.LATE
    assert node.message == "no sample for 4 s: UNAVAILABLE: connection refused"
    world.cluster.sweep(["a"])  # said once
    world.now = 16.0
    world.cluster.sweep(["a"])
    assert node.state is NodeState.LOST
    world.take(sample("a", 2))
    assert (node.state, node.message) == (NodeState.LIVE, "")
    assert [state.value for _, state in world.told] == ["late", "live", "late", "lost", "live"]


def test_a_lost_node_whose_agent_is_gone_is_forgotten() -> None:
    world = Watched()
    world.take(sample("a"), size=7)
    world.take(sample("b"), size=5)
    world.now = 16.0
    world.cluster.sweep(["b"])
    assert [node.id for node in world.cluster.nodes()] == ["b"] and world.cluster.bytes == 5
    assert ("a", NodeState.REMOVED) in world.told and ("b", NodeState.LOST) in world.told


def test_a_node_that_was_never_heard_becomes_lost() -> None:
    world = Watched()
    node = world.cluster.meet("a", "10.0.0.1:8020")
    assert node is not None and (node.state, node.message) == (NodeState.LATE, "no sample yet")
    world.now = 16.0
    world.cluster.sweep(["a"])
    assert (node.state, node.message) == (NodeState.LOST, "no sample yet")


def test_memory_is_bounded() -> None:
    world = Watched(max_nodes=2)
    assert world.take(sample("a"), 10) and world.take(sample("b"), 10) and world.take(sample("a", 2), 12)
    assert world.cluster.bytes == 22 and len(world.cluster) == 2
    assert world.take(sample("c")) is None and world.take(pb.Sample(node="projects/other/nodes/a")) is None
    assert world.cluster.refused == 2 and len(world.cluster) == 2


def live(node_id: str, **fields: object) -> Node:
    return Node(node_id, 1, 0.0, NodeState.LIVE, sample=sample(node_id), **fields)  # type: ignore[arg-type]


async def test_a_slow_reader_gets_the_newest_and_learns_what_it_skipped() -> None:
    consumers = Consumers(1.0)
    consumer = consumers.add(1.0, lambda _: True)
    a, b = live("a"), live("b")
    for second in range(4):
        consumers.publish(a, float(second))
    consumers.publish(b, 4.0)
    assert [(news.node.id, news.skipped) for news in await consumer.take(10**9)] == [("a", 3), ("b", 0)]
    consumers.publish(a, 5.0)
    assert [(news.node.id, news.skipped) for news in await consumer.take(10**9)] == [("a", 0)]


async def test_news_are_taken_piece_by_piece_and_what_waits_is_overtaken() -> None:
    consumers = Consumers(1.0)
    consumer = consumers.add(1.0, lambda _: True)
    nodes = [live(node_id, size=100) for node_id in "abcd"]
    for node in nodes:
        consumers.publish(node, 0.0)
    taken = [news.node.id for news in await consumer.take(150)]
    consumers.publish(nodes[0], 1.0)  # after those that wait
    consumers.publish(nodes[3], 1.0)  # in its old place, one sample skipped
    rest = [(news.node.id, news.skipped) for news in await consumer.take(10**9)]
    assert taken == ["a", "b"] and rest == [("c", 0), ("d", 1), ("a", 0)] and not consumer.waiting


async def test_an_interval_is_kept_without_calling_it_loss() -> None:
    consumers = Consumers(1.0)
    consumer = consumers.add(3.0, lambda _: True)
    taken = []
    for second in range(10):
        consumers.publish(live("a"), second + (0.1 if second % 2 else 0.0))
        consumers.publish(live("b"), float(second))
        if second % 3 == 0:
            taken.append([(news.node.id, news.skipped) for news in await consumer.take(10**9)])
    assert taken == [[("a", 0), ("b", 0)]] * 4


async def test_states_are_told_at_once_and_strangers_not_at_all() -> None:
    consumers = Consumers(1.0)
    consumer = consumers.add(60.0, lambda node_id: node_id == "a")
    node = live("a")
    consumers.publish(node, 0.0)
    await consumer.take(10**9)
    consumers.publish(live("b"), 0.5)
    consumers.publish(node, 1.0)  # not due
    node.state = NodeState.LOST
    consumers.publish(node, 2.0)
    assert [news.node.state for news in await consumer.take(10**9)] == [NodeState.LOST]
    consumer.close()
    with pytest.raises(StreamsClosed):
        await asyncio.wait_for(consumer.take(1), 5)


def view(mask: tuple[str, ...] = (), **lists: list[str]) -> View:
    chosen = ClusterFilter(cluster_pb.ClusterFilter(**lists))  # type: ignore[arg-type]
    return View(chosen, ReadMask(mask), lambda node: f"{PARENT}/nodes/{node.id}")


def node_with(*gpus: pb.GpuSample) -> Node:
    return Node("gpu-1", 1, 0.0, NodeState.LIVE, sample=sample("gpu-1", 5, *gpus), received_ns=10**18, size=100)


def made_of(one: View, node: Node) -> cluster_pb.ClusterNode | None:
    response = cluster_pb.StreamClusterResponse()
    return response.nodes[0] if one.add_to(response.nodes, node) else None


def shown(made: cluster_pb.ClusterNode | None) -> list[str] | None:
    return None if made is None else [gpu.uuid for gpu in made.sample.gpus]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({}, ["one", "two", "three"]),
        ({"nodes": ["gpu-*"]}, ["one", "two", "three"]),
        ({"nodes": ["gpu"]}, None),
        ({"products": ["*H200*"]}, ["one", "two"]),
        ({"products": ["NVIDIA H200"], "pods": ["team-a/*"]}, ["one"]),
        ({"pods": ["*/trainer-0", "team-b/x"]}, ["one", "three"]),
        ({"pods": ["team-a/train"]}, None),
        ({"products": ["NVIDIA.H200"]}, None),
    ],
)
def test_filters(lists: dict[str, list[str]], expected: list[str] | None) -> None:
    node = node_with(
        gpu("one", "NVIDIA H200", "team-a/trainer-0"), gpu("two"), gpu("three", "NVIDIA L4", "team-b/x", "team-c/y")
    )
    assert shown(made_of(view(**lists), node)) == expected


def test_a_reader_of_a_pod_is_told_once_that_it_has_gone() -> None:
    of_pod, node = view(pods=["team-a/x"]), node_with(gpu("one", "H200", "team-a/x"))
    assert shown(made_of(of_pod, node)) == ["one"]
    node.sample = sample("gpu-1", 6, gpu("one"))
    assert shown(made_of(of_pod, node)) == [] and made_of(of_pod, node) is None


def test_a_lost_node_has_no_values() -> None:
    node = node_with(gpu("one"))
    node.state, node.message = NodeState.LOST, "no sample for 20 s"
    made = made_of(view(), node)
    assert made is not None and not made.HasField("sample")
    assert (made.state, made.state_message) == (cluster_pb.NODE_STATE_LOST, "no sample for 20 s")
    assert made.received_time.seconds == 10**9


def test_a_mask_is_of_samples() -> None:
    made = made_of(view(mask=("gpus.power_draw_watts",)), node_with(gpu("one")))
    assert made is not None and made.name == f"{PARENT}/nodes/gpu-1"
    assert made.sample == pb.Sample(gpus=[pb.GpuSample(power_draw_watts=100)])


@pytest.mark.parametrize(
    ("lists", "word"),
    [({"pods": ["trainer"]}, r"namespace/pod.*\*/trainer"), ({"nodes": ["a"] * (MAX_PATTERNS + 1)}, "1000 at most")],
)
def test_filters_that_are_refused(lists: dict[str, list[str]], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        view(**lists)


def test_reads_are_fewer_while_the_event_loop_is_late() -> None:
    pacer = Pacer(1.0)
    pacer.observe(0.8)  # a hiccup
    assert pacer.pause == 0
    for _ in range(20):
        pacer.observe(1.0)
    assert pacer.pause == 4.0
    for _ in range(20):
        pacer.observe(0.1)  # neither late nor calm: as it is
    assert pacer.pause == 4.0
    for _ in range(100):
        pacer.observe(0.0)
    assert pacer.pause == 0


def test_a_node_is_not_late_for_our_own_pause() -> None:
    world = Watched()
    node = world.take(sample("a"))
    world.now = 10.0
    world.cluster.sweep(["a"], slack=8.0)
    assert node is not None and node.state is NodeState.LIVE
    world.cluster.sweep(["a"], slack=2.0)
    assert node.state is NodeState.LATE
