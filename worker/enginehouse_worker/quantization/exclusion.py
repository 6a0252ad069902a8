"""Nodes that a caller wants left in FP32, by name or by operator type, and how a node is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.stages.params import close_matches


def layer_names(graph: GraphIndex) -> tuple[str, ...]:
    """A name for each node that no other node has: its own, or its first output when it has none or shares it."""
    counts = Counter(node.name for node in graph.nodes)
    types = {node.op_type for node in graph.nodes}
    return tuple(
        node.name if node.name and counts[node.name] == 1 and node.name not in types else _first_output(node.output)
        for node in graph.nodes
    )


def excluded_nodes(graph: GraphIndex, names: Sequence[str]) -> frozenset[int]:
    """The numbers of the nodes that have one of the names or operator types.

    What is no node's name and no operator type may be a node's output: nodes without a name are called by theirs.

    Raises:
        WorkerError: INVALID_ARGUMENT for a name that is none of them, with the nearest that are.
    """
    by_name: dict[str, list[int]] = {}
    for number, node in enumerate(graph.nodes):
        for key in {node.name, node.op_type} - {""}:
            by_name.setdefault(key, []).append(number)
    excluded: set[int] = set()
    for name in names:
        if name in by_name:
            excluded.update(by_name[name])
        elif name in graph.producer:
            excluded.add(graph.producer[name])
        else:
            near = close_matches(name, by_name)
            types = ", ".join(sorted({node.op_type for node in graph.nodes}))
            hint = f"close matches: {', '.join(near)}" if near else f"the model's operator types: {types}"
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"exclude: the model has no node or operator type {name!r}; {hint}",
                {"close_matches": near},
            )
    return frozenset(excluded)


def _first_output(outputs: Sequence[str]) -> str:
    return next((str(name) for name in outputs if name), "")
