"""Refuses weights that are no numbers."""

from __future__ import annotations

import numpy as np

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph

# Elsewhere an infinity is meant: in an attention mask, or as a bound of Clip.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})


def check_finite(graph: EditableGraph) -> None:
    """Raise for a constant with NaN, or with an infinity where it is a weight.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the tensor, how many values are wrong, and the node that reads it.
    """
    readers = graph.readers()
    for name, value in graph.constants.items():
        if value.dtype.kind not in "fV" or np.isfinite(value).all():
            continue
        uses = [node for node, position in readers.get(name, ()) if position >= 0]
        weights = [node for node in uses if node.op_type in _WEIGHTED]
        nans, infinities = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        if nans or weights:
            node = (weights or uses or [None])[0]
            reader = f", which node {node.name!r} ({node.op_type}) reads," if node is not None else ""
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"tensor {name!r}{reader} has {nans} NaN and {infinities} infinite values of {value.size}; "
                "export the model again from weights that are finite",
            )
