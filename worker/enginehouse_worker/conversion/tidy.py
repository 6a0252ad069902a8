"""Rewrites a graph into the forms that quantization and backends know: what every conversion and import ends with."""

from __future__ import annotations

from enginehouse_worker.conversion.passes.affine import fold_affine
from enginehouse_worker.conversion.passes.clips import split_input_clips
from enginehouse_worker.conversion.passes.dense import fuse_dense
from enginehouse_worker.conversion.passes.folding import fold_constants
from enginehouse_worker.conversion.passes.noops import remove_noops
from enginehouse_worker.conversion.passes.padding import fold_padding
from enginehouse_worker.conversion.passes.shapes import fold_shapes
from enginehouse_worker.conversion.passes.transposes import remove_transposes
from enginehouse_worker.graphs.editing import EditableGraph, Pass

_PASSES: tuple[Pass, ...] = (
    fold_constants,
    remove_noops,
    fold_shapes,
    fold_constants,
    remove_transposes,
    fold_padding,
    fold_affine,
    fuse_dense,
    remove_noops,
    split_input_clips,
)
# What one round uncovers the next one folds; every pass only removes, so few rounds are ever needed.
_ROUNDS = 4


def tidy(graph: EditableGraph) -> None:
    """Fold constants, known shapes, batch norms and paddings, remove what does nothing, write dense layers as Gemm.

    In place, until nothing changes. No pass changes what the graph computes, but for rounding.
    """
    for _ in range(_ROUNDS):
        before = _state(graph)
        for rewrite in _PASSES:
            rewrite(graph)
        if _state(graph) == before:
            return


def _state(graph: EditableGraph) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.nodes]
