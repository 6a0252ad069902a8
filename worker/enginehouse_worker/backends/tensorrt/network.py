"""Parses an ONNX model into a TensorRT network, with errors that name the node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.tensorrt.library import Library
from enginehouse_worker.errors import WorkerError

_MAX_ERRORS = 5


def parse(library: Library, builder: Any, model: Path | bytes, *, strongly_typed: bool) -> Any:
    """The network of a model's file (its external data is found beside it) or of its bytes, and the parser.

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
    library.messages.take_errors()
    if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))):
        reason = _errors(library, parser)
        library.messages.take_errors()
        raise WorkerError("INVALID_ARGUMENT", f"{library.name} cannot parse the model: {reason}")
    library.messages.take_errors()
    # The parser holds the weights that the network refers to.
    return network, parser


def _errors(library: Library, parser: Any) -> str:
    found = []
    for index in range(min(parser.num_errors, _MAX_ERRORS)):
        error = parser.get_error(index)
        # TensorRT 8 has the node's number only.
        name, operator = (str(getattr(error, method, str)()) for method in ("node_name", "node_operator"))
        place = f"node {name!r} ({operator})" if name and operator else f"node number {error.node()}"
        # TensorRT 8's codes are no enumeration: their `name` is no text.
        unsupported = "UNSUPPORTED_NODE" in str(error.code())
        found.append(f"{place}: {_reason(str(error.desc()), unsupported)}")
    more = parser.num_errors - len(found)
    if more > 0:
        found.append(f"and {more} more")
    return "; ".join(found) or library.messages.take_errors() or "no reason given"


def _reason(text: str, unsupported: bool) -> str:
    """A parser's words without where in its source they were said, and without CUDA's complaint of a missing GPU."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.match(r"\[checkMacros|Invalid Node - ", line)]
    reason = re.sub(r"^.*?Error Code \d+: ", "", " ".join(kept)).strip()
    if reason in ("", "false"):  # what a failed check without a message says
        return "TensorRT does not have this operator" if unsupported else "TensorRT does not take this node"
    return reason
