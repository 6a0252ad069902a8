"""Writes a frozen graph one weight at a time, so that the weights are never in memory a second time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_pieces
from enginehouse_worker.graphs.wire import tag, varint

# Protobuf's limit for one message.
_MAX_BYTES = (1 << 31) - 1
# Fields of GraphDef, NodeDef, a map's entry, AttrValue and TensorProto.
_GRAPH_NODE = 1
_NODE_ATTR = 5
_KEY, _VALUE = 1, 2
_VALUE_TENSOR = 8
_TENSOR_CONTENT = 4


def write_graph(path: Path, graph: Any, weights: Mapping[str, Array]) -> None:
    """Write a GraphDef as one file, which is there whole or not at all.

    Args:
        weights: by node, the values of constants whose `value` in the graph has a type and shape only.

    Raises:
        WorkerError: FAILED_PRECONDITION when the file would be larger than protobuf allows.
    """
    size = graph.ByteSize() + sum(value.nbytes for value in weights.values())
    if size > _MAX_BYTES:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the model has {size / 1e9:.2f} GB of weights, more than the 2 GiB that one GraphDef holds; larger models "
            "are not supported",
        )
    write_pieces(path, _pieces(graph, weights))


def _pieces(graph: Any, weights: Mapping[str, Array]) -> Iterator[Any]:
    for node in graph.node:
        if node.name in weights:
            yield from _constant(node, weights[node.name])
        else:
            yield from _message(_GRAPH_NODE, [node.SerializeToString(deterministic=True)])
    rest = type(graph)(versions=graph.versions)
    rest.library.CopyFrom(graph.library)
    yield rest.SerializeToString(deterministic=True)


def _constant(node: Any, value: Array) -> list[Any]:
    """The pieces of a constant, its content taken from the array: fields that come twice are merged."""
    content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    tensor = [node.attr["value"].tensor.SerializeToString(deterministic=True), *_message(_TENSOR_CONTENT, [content])]
    light = type(node)()
    light.CopyFrom(node)
    del light.attr["value"]
    entry = [*_message(_KEY, [b"value"]), *_message(_VALUE, _message(_VALUE_TENSOR, tensor))]
    return _message(_GRAPH_NODE, [light.SerializeToString(deterministic=True), *_message(_NODE_ATTR, entry)])


def _message(field: int, pieces: list[Any]) -> list[Any]:
    """A field of a message with its length, in pieces."""
    return [tag(field) + varint(sum(len(piece) for piece in pieces)), *pieces]
