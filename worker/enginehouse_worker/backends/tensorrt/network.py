"""Parses an ONNX model into a TensorRT network, with errors that name the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library
from enginehouse_worker.errors import WorkerError

_MAX_ERRORS = 5


def parse(library: Library, builder: Any, model: Path, *, strongly_typed: bool) -> Any:
    """The network of a model's file (its external data is found beside it).

    Raises:
        WorkerError: INVALID_ARGUMENT with the nodes that TensorRT does not take.
    """
    trt = library.trt
    flags = 0
    explicit = library.flag("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
    if explicit is not None:
        flags |= 1 << int(explicit)
    typed = library.flag("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    if strongly_typed and typed is not None:
        flags |= 1 << int(typed)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(model)):
        raise WorkerError("INVALID_ARGUMENT", f"TensorRT cannot parse the model: {_errors(library, parser)}")
    library.messages.take_errors()
    # The parser holds the weights that the network refers to.
    return network, parser


def _errors(library: Library, parser: Any) -> str:
    found = []
    for index in range(min(parser.num_errors, _MAX_ERRORS)):
        error = parser.get_error(index)
        named = [getattr(error, method, lambda: "")() for method in ("node_name", "node_operator")]
        name, operator = (str(value) for value in named)
        place = f"node {name!r} ({operator})" if name and operator else f"node {error.node()}"
        found.append(f"{place}: {error.desc()}")
    more = parser.num_errors - len(found)
    if more > 0:
        found.append(f"and {more} more")
    return "; ".join(found) or library.messages.take_errors() or "no reason given"
