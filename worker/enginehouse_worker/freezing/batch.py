"""Frees a batch dimension that a model was exported with a fixed size of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.carving import End, carve
from enginehouse_worker.freezing.graph_def import imported

_SIZE_OF_UNKNOWN = 8
_MAX_ELEMENTS = 1 << 24
_TOLERANCE = 1e-3


def with_free_batch(graph: Any, inputs: Sequence[End], outputs: Sequence[End]) -> tuple[Any, list[End]]:
    """The graph with dimension 0 of every input unknown, if it was one fixed number and the graph computes samples
    apart.

    That is tried: the shapes of all outputs must follow, and two batches put together must give what each gives alone.
    """
    first = {item.shape[0] if item.shape else 0 for item in inputs}
    if len(first) != 1 or min(first) < 1:
        return graph, list(inputs)
    free = [replace(item, shape=(-1, *(item.shape or ())[1:])) for item in inputs]
    ends_in = [replace(item, tensor=f"{item.name}:0") for item in free]
    candidate = carve(graph, ends_in, [replace(item, tensor=f"{item.name}:0") for item in outputs])
    try:
        symbolic = imported(candidate)
        shapes = [symbolic.get_tensor_by_name(f"{item.name}:0").shape for item in outputs]
        if all(shape.rank and shape[0] is None for shape in shapes) and _samples_apart(
            symbolic, free, outputs, first.pop()
        ):
            return candidate, free
    except WorkerError:
        # The shapes within contradict a free batch: it stays fixed.
        pass
    return graph, list(inputs)


def _samples_apart(graph: Any, inputs: Sequence[End], outputs: Sequence[End], size: int) -> bool:
    import tensorflow as tf

    shapes = [[size, *(_SIZE_OF_UNKNOWN if d < 0 else d for d in (item.shape or ())[1:])] for item in inputs]
    if sum(2 * int(np.prod(shape)) for shape in shapes) > _MAX_ELEMENTS:
        return False
    random = np.random.default_rng(0)
    names = [f"{item.name}:0" for item in outputs]
    try:
        with tf.compat.v1.Session(graph=graph) as session:
            halves = [_feed(graph, inputs, shapes, random) for _ in range(2)]
            whole = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
            apart = [session.run(names, half) for half in halves]
            together = session.run(names, whole)
    except Exception as error:
        print(f"the batch stays fixed: {error}", file=sys.stderr)
        return False
    return all(
        joined.shape[:1] == (2 * size,) and _close(joined, np.concatenate([a, b]))
        for joined, a, b in zip(together, *apart, strict=True)
    )


def _feed(graph: Any, inputs: Sequence[End], shapes: list[list[int]], random: Any) -> dict[str, Any]:
    feed = {}
    for item, shape in zip(inputs, shapes, strict=True):
        dtype = graph.get_tensor_by_name(f"{item.name}:0").dtype.as_numpy_dtype
        feed[f"{item.name}:0"] = random.uniform(0, 2, shape).astype(dtype)
    return feed


def _close(a: Any, b: Any) -> bool:
    if a.dtype.kind not in "fc":
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * (float(np.abs(b).max(initial=0)) or 1.0)))
