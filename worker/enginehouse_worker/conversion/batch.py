"""Makes dimension 0 a dynamic batch where a graph does the same to every sample."""

from __future__ import annotations

import copy

import numpy as np
import onnx

from enginehouse_worker.graphs.editing import EditableGraph, attributes
from enginehouse_worker.graphs.naming import unique_name

BATCH = "batch"


def with_dynamic_batch(graph: EditableGraph) -> EditableGraph | None:
    """A copy whose inputs and outputs have a dynamic dimension 0, or None when theirs is fixed to more than 1.

    Whether that computes the same is to be seen by running it. A Reshape to a constant shape that begins with 1 keeps
    its input's batch instead.
    """
    infos = (*graph.inputs, *graph.outputs)
    if not graph.inputs or not all(_may_be_batch(info) for info in infos):
        return None
    changed = copy_of(graph)
    taken = changed.names()
    for info in (*changed.inputs, *changed.outputs):
        if info.type.tensor_type.HasField("shape"):
            dimension = info.type.tensor_type.shape.dim[0]
            dimension.Clear()
            dimension.dim_param = BATCH
    shapes = graph.infer().shapes
    for node in changed.nodes:
        target = changed.constants.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        if target is None or target.ndim != 1 or not target.size or target[0] != 1 or node.input[0] in graph.constants:
            continue
        source = shapes.get(node.input[0], ())
        if (target == -1).any():
            if not source or source[0] != 1 or attributes(node).get("allowzero", 0):
                continue
            first = 0
        else:
            first = -1
        name = unique_name(f"{node.output[0]}/shape", taken)
        changed.constants[name] = np.concatenate([[first], target[1:]]).astype(np.int64)
        node.input[1] = name
    return changed


def copy_of(graph: EditableGraph) -> EditableGraph:
    """A copy whose nodes can be changed; it shares the constants' values."""
    made = copy.copy(graph)
    made.nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.nodes]
    made.constants = dict(graph.constants)
    made.inputs = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in graph.inputs]
    made.outputs = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in graph.outputs]
    return made


def _may_be_batch(info: onnx.ValueInfoProto) -> bool:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return True
    if not tensor.shape.dim:
        return False
    first = tensor.shape.dim[0]
    return not first.HasField("dim_value") or first.dim_value == 1
