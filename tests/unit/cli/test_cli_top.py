"""`telemetry top`: what is drawn, in what order, how much of it; one agent instead of an aggregator."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone
from typing import Any

import pytest
from rich.console import Console

from enginehouse.cli.top import Cluster, holders, of_agent, screen
from enginehouse.client.values import ClusterNode, GpuAllocation, GpuSample, Sample

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)


def gpu(index: int, util: float | None, power: float | None = None, **fields: Any) -> GpuSample:
    return GpuSample(
        f"GPU-{index}",
        index,
        "ok",
        product="NVIDIA H200",
        utilization_gpu_percent=util,
        power_draw_watts=power,
        **fields,
    )


def node(name: str, *gpus: GpuSample) -> ClusterNode:
    full = f"projects/default/nodes/{name}"
    return ClusterNode(full, "live", sample=Sample(NOW, full, 1, gpus))


def held(pod: str, *, shared: bool = False) -> GpuAllocation:
    return GpuAllocation("team", pod, "main", shared=shared)


def drawn(nodes: list[ClusterNode], order: str = "node", lines: int | None = None) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=200).print(screen(nodes, order=order, lines=lines, now=NOW))
    return [line.rstrip() for line in file.getvalue().splitlines()]


NODES = [
    node("b", gpu(0, 10.0, 500.0, memory_used_bytes=1 << 30, memory_total_bytes=141 << 30), gpu(1, None)),
    node("a", gpu(0, 90.0, 100.0, allocations=(held("trainer"),))),
    ClusterNode("projects/default/nodes/c", "lost", "no sample for 20 s: UNAVAILABLE"),
]


def test_totals_troubles_and_gpus() -> None:
    head, trouble, columns, *rows = drawn(NODES)
    assert "nodes 2 live, 1 lost" in head and "GPUs 3 (1 held by pods)" in head
    assert "util 50 %" in head and "power 0.6 kW" in head and "memory 1 / 141 GiB" in head
    assert trouble == "c is lost: no sample for 20 s: UNAVAILABLE"
    assert columns.split()[0] == "NODE" and columns.endswith("POD")
    assert [row.split()[:2] for row in rows] == [["a", "0"], ["b", "0"], ["b", "1"]]
    assert rows[0].endswith("team/trainer") and "1/141" in rows[1] and " - " in rows[2]


@pytest.mark.parametrize(("order", "first"), [("util", "a"), ("power", "b"), ("memory", "b")])
def test_orders(order: str, first: str) -> None:
    assert drawn(NODES, order)[3].split()[0] == first


def test_as_many_lines_as_fit() -> None:
    lines = drawn([node(f"n{number:03}", gpu(0, 1.0)) for number in range(100)], lines=20)
    assert len(lines) < 20 and lines[-1].startswith("86 more GPUs")


def test_many_troubles_are_counted() -> None:
    lines = drawn([ClusterNode(f"projects/default/nodes/n{n}", "late", "no sample") for n in range(9)], lines=20)
    assert sum(" is late: " in line for line in lines) == 5 and "and 4 more nodes late or lost" in lines


def test_who_holds_a_gpu() -> None:
    assert holders(()) == "" and holders((held("x"),)) == "team/x"
    assert holders((held("x", shared=True), held("y", shared=True), held("y", shared=True))) == "team/x +1 (shared)"


def test_news_take_the_place_of_what_was_and_remove() -> None:
    cluster = Cluster(NODES)
    cluster.update([node("a", gpu(0, 1.0)), ClusterNode("projects/default/nodes/c", "removed")])
    assert [(one.id, one.state) for one in cluster.nodes] == [("b", "live"), ("a", "live")]


def test_filters_of_an_agents_gpus() -> None:
    sample = node("a", gpu(0, 1.0, allocations=(held("x-1"),)), gpu(1, 1.0)).sample
    assert sample is not None

    def left(pods: tuple[str, ...] = (), products: tuple[str, ...] = ()) -> list[int]:
        found = of_agent(sample, pods, products).sample
        return [gpu.index for gpu in found.gpus] if found else []

    assert left() == [0, 1] and left(pods=("team/x-*",)) == [0] and left(products=("H200",)) == []
    assert left(products=("*H200",)) == [0, 1] and left(pods=("other/*",)) == []


def test_top_of_one_agent(enginehouse: Any) -> None:
    shown = enginehouse("telemetry", "top", "--once")
    assert shown.status == 0 and "nodes 1 live" in shown.out
    (line,) = enginehouse("telemetry", "top", "--once", "--json").out.splitlines()
    assert json.loads(line)["state"] == "live"
    assert enginehouse("telemetry", "top", "--sort", "size").status == 2
    assert "--pod" in enginehouse("telemetry", "top", "--help").out
