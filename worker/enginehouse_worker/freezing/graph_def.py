"""Reads a serialized GraphDef with care, folds its constants, and says what its tensors are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from enginehouse_worker.backends.base import TensorSpec
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.carving import End, carve
from enginehouse_worker.freezing.dtypes import protocol_name
from enginehouse_worker.freezing.operations import node_of

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_MAX_DEPTH = 8
_OPTIMIZERS = ("function", "constfold", "dependency")


def check_structure(graph: Any) -> None:
    """Check what TensorFlow takes for granted: names that are there once, and inputs that exist.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the node.
    """
    names: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in names:
            what = f"two nodes called {node.name[:200]!a}" if node.name else f"a node ({node.op[:80]!a}) without a name"
            raise WorkerError("INVALID_ARGUMENT", f"the graph has {what}: the file is damaged")
        names.add(node.name)
    for node in graph.node:
        for value in node.input:
            if node_of(value) not in names:
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"node {node.name[:200]!a} of the graph reads {value[:200]!a}, which is not there: the file is "
                    "damaged or "
                    "a part of a graph",
                )


def imported(graph: Any) -> Any:
    """A `tf.Graph` of a GraphDef, with shapes inferred.

    Raises:
        WorkerError: INVALID_ARGUMENT with TensorFlow's reason.
    """
    import tensorflow as tf

    result = tf.Graph()
    try:
        with result.as_default():
            tf.graph_util.import_graph_def(graph, name="")
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:1500]
        raise WorkerError("INVALID_ARGUMENT", f"TensorFlow cannot import the graph: {text}") from None
    return result


def end(name: str, tensor: Any, shape: tuple[int, ...] | None = None) -> End:
    """An End for a symbolic tensor; `shape` overrides what was inferred."""
    if shape is None and tensor.shape.rank is not None:
        shape = tuple(-1 if size is None else int(size) for size in tensor.shape)
    return End(name, tensor.name, int(tensor.dtype.as_datatype_enum), shape)


def spec(graph: Any, name: str) -> TensorSpec:
    """The TensorSpec of tensor `name:0` of a `tf.Graph`.

    Raises:
        WorkerError: INVALID_ARGUMENT when its rank or dtype is none that engines take.
    """
    tensor = graph.get_tensor_by_name(f"{name}:0")
    if tensor.shape.rank is None:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{name!r} has no fixed number of dimensions; export the model with inputs of a known shape (only the "
            "batch "
            "and sizes may be unknown)",
        )
    return TensorSpec(
        name, protocol_name(tensor.dtype), tuple(-1 if size is None else int(size) for size in tensor.shape)
    )


def folded(graph: Any, inputs: Sequence[End], outputs: Sequence[End]) -> Any:
    """A carved graph with functions inlined and constants folded by grappler, as far as TensorFlow manages that.

    What it gives is carved again: inlining leaves names and Identities.
    """
    from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge

    ends_in = [End(item.name, f"{item.name}:0", item.dtype, item.shape) for item in inputs]
    ends_out = [End(item.name, f"{item.name}:0", item.dtype, item.shape) for item in outputs]
    fetches = [item.name for item in (*inputs, *outputs)]
    for _ in range(_MAX_DEPTH):
        graph = carve(_optimized(disable_lower_using_switch_merge(graph), fetches), ends_in, ends_out)
        # One pass inlines the calls of one depth.
        if not any(node.op in _CALLS for node in graph.node):
            break
    return graph


def _optimized(graph: Any, fetches: Sequence[str]) -> Any:
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer

    config = tf.compat.v1.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.optimizers.extend(_OPTIMIZERS)
    rewriting.meta_optimizer_iterations = rewriting.TWO
    rewriting.min_graph_nodes = -1
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph, graph=imported(graph))
    meta.collection_def["train_op"].node_list.value.extend(fetches)
    try:
        return tf_optimizer.OptimizeGraph(config, meta)
    except Exception as error:
        # A graph as it was is right as well.
        print(f"grappler left the graph as it is: {error}", file=sys.stderr)
        return graph
