"""A transformer encoder through calibration with token numbers and both dialects, by the stages themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.graphs.index import index_graph
from enginehouse_worker.quantization.rules import DIALECTS
from quantized_graphs import QuantizedGraph
from stages import succeed, write_dataset
from transformer import encoder, sentences


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


@pytest.mark.parametrize("decomposed", [False, True])
def test_products_are_quantized_and_norms_and_softmax_are_not(tmp_path: Path, decomposed: bool) -> None:
    original = encoder(decomposed=decomposed)
    (model := tmp_path / "model").mkdir()
    onnx.save(original, str(model / "model.onnx"))
    data = write_dataset(tmp_path / "data", **sentences(64))
    calibration = succeed("calibrate", tmp_path / "table", {"model": model, "dataset": data}, batch_size=16)
    other = sentences(32, seed=1)
    expected = run(original, other)
    graph = index_graph(original)
    for dialect in DIALECTS:
        made = succeed(
            "quantize", tmp_path / dialect, {"model": model, "calibration": calibration.output}, dialect=dialect
        )
        result = onnx.load(str(made.output / "model.onnx"))
        onnx.checker.check_model(result, full_check=True)
        quantized = QuantizedGraph(graph, result)
        residuals = 0
        for number, node in quantized.pairs_of_nodes():
            read = [quantized.behind_pair(tensor) is not None for tensor in node.input]
            if node.op_type in ("MatMul", "Gemm"):
                assert read[:2] == [True, True], node.name
            elif node.op_type == "Add" and node.name.endswith(("residual", "residual2")):
                residuals += sum(read)
                if any(read):
                    shortcut = graph.nodes[number].input[read.index(True)]
                    assert not shortcut.endswith("/add_output") or "norm" in shortcut
            elif node.op_type not in ("Reshape", "Transpose", "Gather"):
                assert not any(read), f"a pair before {node.op_type} {node.name}"
        if dialect == "tensorrt":
            assert residuals == 4
        found = run(result, other)
        sqnr = 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())
        assert sqnr > 20, f"{dialect}: {sqnr:.1f} dB"
        if dialect == "onnxruntime":
            operators = made.result["optimized_operators"]
            # A layer has four projections, two products of attention and two dense layers.
            products = sum(operators.get(kind, 0) for kind in ("MatMulIntegerToFloat", "QLinearMatMul"))
            assert products == 16, operators
            assert operators.get("MatMul", 0) == 0
