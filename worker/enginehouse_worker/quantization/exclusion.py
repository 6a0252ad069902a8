"""Nodes that a caller wants left in FP32, by name or by operator type."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import GraphIndex
from enginehouse_worker.stages.params import close_matches


def excluded_nodes(graph: GraphIndex, names: Sequence[str]) -> frozenset[int]:
    """The numbers of the nodes that have one of the names or operator types.

    Raises:
        WorkerError: INVALID_ARGUMENT for a name that is neither, with the nearest that are.
    """
    by_name: dict[str, list[int]] = {}
    for number, node in enumerate(graph.nodes):
        for key in {node.name, node.op_type} - {""}:
            by_name.setdefault(key, []).append(number)
    excluded: set[int] = set()
    for name in names:
        if name not in by_name:
            near = close_matches(name, by_name)
            types = ", ".join(sorted({node.op_type for node in graph.nodes}))
            hint = f"close matches: {', '.join(near)}" if near else f"the model's operator types: {types}"
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"exclude: the model has no node or operator type {name!r}; {hint}",
                {"close_matches": near},
            )
        excluded.update(by_name[name])
    return frozenset(excluded)
