"""Refuses weights that are not finite, in whatever format they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from enginehouse_worker.errors import WorkerError

_SHOWN = 8
_MULTIPLYING = frozenset(
    {
        "BatchMatMul",
        "BatchMatMulV2",
        "BatchMatMulV3",
        "Conv2D",
        "Conv2DBackpropInput",
        "Conv3D",
        "DepthwiseConv2dNative",
        "FusedBatchNorm",
        "FusedBatchNormV2",
        "FusedBatchNormV3",
        "MatMul",
    }
)
_PASSING = frozenset({"Cast", "Enter", "ExpandDims", "Identity", "Reshape", "StopGradient", "Transpose"})


def check_finite(tensors: Iterable[tuple[str, Any]], file_name: str) -> None:
    """Refuse weights with NaN or infinite values.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensors with how many of their values are not finite.
    """
    found = [(name, bad, np.size(value)) for name, value in tensors if (bad := _not_finite(value))]
    if found:
        _refuse(found, file_name)


def check_finite_constants(graph: Any, file_name: str) -> None:
    """Refuse a GraphDef with constants that are NaN, or infinite as weights.

    A constant of nothing but zeros and infinities is a mask or a bound, unless an operator multiplies with it.

    Raises:
        WorkerError: INVALID_ARGUMENT as `check_finite`.
    """
    found = []
    for nodes in _node_lists(graph):
        weights: set[str] | None = None
        for name, value in _constants(nodes):
            if not (bad := _not_finite(value)):
                continue
            if weights is None:
                weights = _multiplied(nodes)
            if name in weights or np.isnan(value).any() or (np.isfinite(value) & (value != 0)).any():
                found.append((name, bad, value.size))
    if found:
        _refuse(found, file_name)


def count_parameters(graph: Any) -> int:
    """The number of values in a GraphDef's floating-point constants of one dimension or more: weights, and no
    shapes.
    """
    values = (value for nodes in _node_lists(graph) for _, value in _constants(nodes))
    return sum(value.size for value in values if value.ndim and value.dtype.kind in "fcV")


def _node_lists(graph: Any) -> Iterator[Sequence[Any]]:
    """The nodes of the graph, and of each of its functions."""
    yield graph.node
    for function in graph.library.function:
        yield function.node_def


def _multiplied(nodes: Sequence[Any]) -> set[str]:
    """The nodes whose values an operator of `_MULTIPLYING` reads, maybe behind operators that pass them on."""
    by_name = {node.name: node for node in nodes}
    found: set[str] = set()
    waiting = [node for node in nodes if node.op in _MULTIPLYING]
    while waiting:
        for source in (name.split(":")[0] for name in waiting.pop().input if not name.startswith("^")):
            if source in by_name and source not in found:
                found.add(source)
                if by_name[source].op in _PASSING:
                    waiting.append(by_name[source])
    return found


def _constants(nodes: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    import tensorflow as tf

    for node in nodes:
        if node.op == "Const":
            try:
                yield node.name, tf.make_ndarray(node.attr["value"].tensor)
            except Exception as error:
                raise WorkerError(
                    "INVALID_ARGUMENT", f"the constant {node.name!r} of the graph is damaged: {error}"
                ) from None


def _not_finite(value: Any) -> int:
    array = np.asarray(value)
    # bfloat16 and its like are kind V to NumPy, but know isfinite.
    if array.dtype.kind not in "fcV" or array.dtype.names is not None:
        return 0
    try:
        return int(array.size - np.count_nonzero(np.isfinite(array)))
    except TypeError:
        return 0


def _refuse(found: list[tuple[str, int, int]], file_name: str) -> None:
    shown = ", ".join(f"{name} ({bad} of {size} values)" for name, bad, size in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise WorkerError(
        "INVALID_ARGUMENT",
        f"{file_name} has weights that are NaN or infinite: {shown}{more}. Training diverged, or the file is damaged",
    )
