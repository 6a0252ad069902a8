"""Writes an ONNX file one constant at a time, so that the weights are never in memory a second time."""

from __future__ import annotations

import os
from pathlib import Path

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph
from enginehouse_worker.graphs.wire import tag, varint

# Protobuf's limit for one message, and so for one ONNX file.
MAX_BYTES = (1 << 31) - 1
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5


def write_model(path: Path, graph: EditableGraph) -> None:
    """Write a graph as one `.onnx` file, which is there whole or not at all.

    Fields of a protobuf message may come in any order, so the constants follow everything else.

    Raises:
        WorkerError: FAILED_PRECONDITION when the file would be larger than protobuf allows.
    """
    header = graph.header()
    inner = header.graph.SerializeToString(deterministic=True)
    header.ClearField("graph")
    outer = header.SerializeToString(deterministic=True)
    # The graph's length stands before it, so the constants are gone through twice.
    length = len(inner)
    for tensor in graph.initializers():
        size = tensor.ByteSize()
        length += len(tag(_GRAPH_INITIALIZER) + varint(size)) + size
    check_size(len(outer) + length + len(tag(_MODEL_GRAPH) + varint(length)))
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        file.write(outer + tag(_MODEL_GRAPH) + varint(length) + inner)
        for tensor in graph.initializers():
            data = tensor.SerializeToString(deterministic=True)
            file.write(tag(_GRAPH_INITIALIZER) + varint(len(data)))
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def check_size(size: int) -> None:
    """Raise FAILED_PRECONDITION for a model that does not fit one ONNX file; `size` in bytes."""
    if size > MAX_BYTES:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the model has {size / 1e9:.2f} GB of weights in FP32, more than the 2 GiB that one ONNX file holds; "
            "larger models are not supported",
        )
