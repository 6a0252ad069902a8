"""The cluster at a glance: totals, nodes in trouble, and a line a GPU, as many as fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from enginehouse.cli.output import cell
from enginehouse.client.values import ClusterNode, GpuAllocation, GpuSample, Sample

GIB = 1 << 30

# What the table shows; nothing else is asked for.
FIELDS = (
    "time",
    "node",
    "sequence",
    "allocation_message",
    "host.cpu_utilization_percent",
    *(
        f"gpus.{name}"
        for name in (
            "uuid",
            "index",
            "state",
            "state_message",
            "product",
            "utilization_gpu_percent",
            "memory_used_bytes",
            "memory_total_bytes",
            "power_draw_watts",
            "temperature_gpu_celsius",
            "allocations",
        )
    ),
)

COLUMNS = ("NODE", "GPU", "PRODUCT", "UTIL %", "MEMORY GiB", "POWER W", "TEMP C", "POD")
# Nodes in trouble that are named; totals, headings and the line of what is left out take the rest of these lines.
MOST_TROUBLES = 5
OTHER_LINES = 5

_STYLES = {"late": "yellow", "lost": "red"}


@dataclass(frozen=True)
class GpuLine:
    """A GPU and its node."""

    node: ClusterNode
    gpu: GpuSample


def _least(value: float | None) -> float:
    return -1.0 if value is None else value


# What the busiest, fullest ... GPUs are, first.
ORDERS: dict[str, Callable[[GpuLine], tuple[object, ...]]] = {
    "node": lambda line: (line.node.id, line.gpu.index),
    "util": lambda line: (-_least(line.gpu.utilization_gpu_percent), line.node.id, line.gpu.index),
    "memory": lambda line: (-_least(line.gpu.memory_used_bytes), line.node.id, line.gpu.index),
    "power": lambda line: (-_least(line.gpu.power_draw_watts), line.node.id, line.gpu.index),
    "temp": lambda line: (-_least(line.gpu.temperature_gpu_celsius), line.node.id, line.gpu.index),
}


class Cluster:
    """The nodes as the news of a stream leave them."""

    def __init__(self, nodes: Iterable[ClusterNode] = ()) -> None:
        self._nodes: dict[str, ClusterNode] = {}
        self.update(nodes)

    def update(self, nodes: Iterable[ClusterNode]) -> None:
        """Take news."""
        for node in nodes:
            if node.state == "removed":
                self._nodes.pop(node.name, None)
            else:
                self._nodes[node.name] = node

    @property
    def nodes(self) -> list[ClusterNode]:
        return list(self._nodes.values())


def of_agent(sample: Sample, pods: Sequence[str], products: Sequence[str]) -> ClusterNode:
    """One agent's sample as a cluster's node; the filters are an aggregator's, applied here."""
    gpus = [
        gpu
        for gpu in sample.gpus
        if _any(products, (gpu.product,)) and _any(pods, [f"{held.namespace}/{held.pod}" for held in gpu.allocations])
    ]
    return ClusterNode(sample.node, "live", sample=replace(sample, gpus=tuple(gpus)), received=sample.time)


def _any(patterns: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether one of the texts is one of the patterns, in which "*" stands for any characters."""
    if not patterns:
        return True
    made = ["".join(".*" if part == "*" else re.escape(part) for part in re.split(r"(\*)", one)) for one in patterns]
    return any(re.fullmatch(one, text, re.DOTALL) for one in made for text in texts)


def screen(nodes: Sequence[ClusterNode], *, order: str, lines: int | None, now: datetime) -> Group:
    """What to draw.

    Args:
        order: of the GPUs; one of `ORDERS`.
        lines: of the terminal; None draws every GPU.
    """
    troubles = sorted((node for node in nodes if node.state != "live"), key=lambda node: (node.state, node.id))
    found = [GpuLine(node, gpu) for node in nodes if node.sample is not None for gpu in node.sample.gpus]
    found.sort(key=ORDERS[order])
    parts = [Text(totals(nodes, now))]
    parts += [
        Text(f"{node.id} is {node.state}: {node.state_message}", style=_STYLES.get(node.state, ""), no_wrap=True)
        for node in troubles[:MOST_TROUBLES]
    ]
    if len(troubles) > MOST_TROUBLES:
        parts.append(Text(f"and {len(troubles) - MOST_TROUBLES} more nodes late or lost", style="yellow"))
    room = len(found) if lines is None else max(1, lines - len(parts) - OTHER_LINES)
    left = len(found) - room
    group: list[Text | Table] = [*parts, _table(found[:room])]
    if left > 0:
        group.append(Text(f"{left} more GPUs; --sort, --node, --pod and --product choose", style="dim"))
    return Group(*group)


def totals(nodes: Sequence[ClusterNode], now: datetime) -> str:
    """The first line: nodes by state, GPUs, and what they do together."""
    states = {state: sum(node.state == state for node in nodes) for state in ("live", "late", "lost")}
    gpus = [gpu for node in nodes if node.sample is not None for gpu in node.sample.gpus]
    held = sum(bool(gpu.allocations) for gpu in gpus)
    words = [
        f"{now.astimezone():%H:%M:%S}",
        "nodes " + ", ".join(f"{count:,} {state}" for state, count in states.items() if count or state == "live"),
        f"GPUs {len(gpus):,} ({held:,} held by pods)",
    ]
    busy = [gpu.utilization_gpu_percent for gpu in gpus if gpu.utilization_gpu_percent is not None]
    if busy:
        words.append(f"util {sum(busy) / len(busy):.0f} %")
    used = sum(gpu.memory_used_bytes or 0 for gpu in gpus)
    if total := sum(gpu.memory_total_bytes or 0 for gpu in gpus):
        words.append(f"memory {used / GIB:,.0f} / {total / GIB:,.0f} GiB")
    power = [gpu.power_draw_watts for gpu in gpus if gpu.power_draw_watts is not None]
    if power:
        words.append(f"power {sum(power) / 1000:,.1f} kW")
    return "   ".join(words)


def _table(found: Sequence[GpuLine]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        grid.add_column(column, no_wrap=True, overflow="ellipsis")
    for line in found:
        gpu = line.gpu
        row = (
            line.node.id,
            gpu.index,
            gpu.product,
            gpu.utilization_gpu_percent,
            f"{_gib(gpu.memory_used_bytes)}/{_gib(gpu.memory_total_bytes)}",
            gpu.power_draw_watts,
            gpu.temperature_gpu_celsius,
            holders(gpu.allocations) if gpu.state == "ok" else f"{gpu.state}: {gpu.state_message}",
        )
        style = _STYLES.get(line.node.state, "red" if gpu.state == "lost" else "")
        grid.add_row(*(Text(cell(value)) for value in row), style=style)
    return grid


def holders(allocations: Sequence[GpuAllocation]) -> str:
    """Who holds a GPU: "namespace/pod", how many more, and whether it is shared."""
    if not allocations:
        return ""
    pods = list(dict.fromkeys(f"{held.namespace}/{held.pod}" for held in allocations))
    more = f" +{len(pods) - 1}" if len(pods) > 1 else ""
    shared = " (shared)" if any(held.shared for held in allocations) else ""
    return f"{pods[0]}{more}{shared}"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.0f}"
