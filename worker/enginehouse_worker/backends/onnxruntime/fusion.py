"""What ONNX Runtime made of a quantized graph: which operators run in INT8, and which Q/DQ are left between them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from enginehouse_worker.backends.onnxruntime.session import create_session


def optimized_operators(model: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """Operators of the graph as ONNX Runtime runs it, with their number.

    `QLinearConv`, `QGemm` and such are INT8 kernels. What is left of QuantizeLinear and DequantizeLinear stands where
    the graph goes from FP32 to INT8 and back.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimized.onnx"
        create_session(model, options, optimized_model=path)
        graph = onnx.load(str(path), load_external_data=False).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))
