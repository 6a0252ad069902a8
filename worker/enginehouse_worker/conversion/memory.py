"""Keeps tf2onnx's memory in proportion to the model.

Two habits of tf2onnx 1.17 multiply a model's weights. It copies the graph before every optimization, to go back if one
fails. And after each it writes every constant into its protobuf node anew, whose arena keeps the old copies until the
end. ResNet-50 (100 MB of weights) took 6.6 GB, VGG-16 (550 MB) more than 23 GB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"


@contextmanager
def frugal_conversion() -> Iterator[None]:
    """While it lasts, tf2onnx neither copies graphs nor rewrites constants that did not change."""
    from tf2onnx.graph import Node

    original = Node.update_proto

    def update_proto(node: Any, external_tensor_storage: Any = None) -> None:
        value = node.attr.get("value") if node.is_const() else None
        if value is not None and node.__dict__.get("_written_value") is value:
            del node._op.output[:]
            node._op.output.extend(node.output)
            return
        original(node, external_tensor_storage)
        node._written_value = value

    before = os.environ.get(_CATCH_ERRORS)
    os.environ[_CATCH_ERRORS] = "FALSE"
    Node.update_proto = update_proto
    try:
        yield
    finally:
        Node.update_proto = original
        if before is None:
            del os.environ[_CATCH_ERRORS]
        else:
            os.environ[_CATCH_ERRORS] = before
