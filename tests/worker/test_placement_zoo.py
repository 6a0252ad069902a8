"""The placement rules on the zoo's graphs, which `benchmarks/graphs` keeps without their weights."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path

import onnx
import pytest
from enginehouse_worker.graphs.index import GraphIndex, index_graph
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import DIALECTS, ONNXRUNTIME, TENSORRT
from enginehouse_worker.quantization.scales import asymmetric_scale, symmetric_scale
from quantized_graphs import QuantizedGraph

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from weightless import fill  # noqa: E402

GRAPHS = sorted(path.stem for path in (BENCHMARKS / "graphs").glob("*.onnx"))
# VGG's weights are half a gigabyte: seconds to draw.
GRAPH_PARAMETERS = [pytest.param(name, marks=pytest.mark.slow if name.startswith("vgg") else ()) for name in GRAPHS]
# (Conv and Gemm, pairs at poolings, residual Adds).
EXPECTED = {
    "inception_v3": (95, 14, 0),
    "inception_v4": (150, 19, 0),
    "resnet_v1_50": (54, 2, 16),
    "resnet_v2_50": (54, 5, 16),
    "vgg16": (16, 5, 0),
    "vgg19": (19, 5, 0),
}


@cache
def zoo_graph(name: str) -> GraphIndex:
    return index_graph(fill(onnx.load(str(BENCHMARKS / "graphs" / f"{name}.onnx"))))


@cache
def quantized(name: str, dialect_name: str) -> tuple[GraphIndex, QuantizedGraph]:
    dialect = DIALECTS[dialect_name]
    graph = zoo_graph(name)
    placement = place(graph, dialect)
    symmetric = dialect.symmetric_activations
    scales = {t: symmetric_scale(4.0) if symmetric else asymmetric_scale(0.0, 4.0) for t in placement.range_of}
    return graph, QuantizedGraph(graph, insert(graph, placement, dialect, scales))


def test_the_whole_zoo_is_here() -> None:
    assert set(GRAPHS) <= set(EXPECTED)
    assert len(GRAPHS) >= 4


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("name", GRAPH_PARAMETERS)
def test_every_convolution_and_dense_layer_reads_one_pair_for_each_operand(name: str, dialect: str) -> None:
    graph, result = quantized(name, dialect)
    products = 0
    for number, node in result.pairs_of_nodes():
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            products += 1
            for position in (0, 1):
                source = result.behind_pair(node.input[position])
                assert source is not None, f"{node.name} reads {node.input[position]} in FP32"
                assert result.behind_pair(source) is None
            assert result.original_name(result.behind_pair(node.input[0]) or "") == graph.nodes[number].input[0]
        if node.op_type == "Softmax":
            assert result.behind_pair(node.input[0]) is None
    assert products == EXPECTED[name][0]


@pytest.mark.parametrize("name", GRAPH_PARAMETERS)
def test_tensorrt_has_pairs_at_poolings_and_shortcuts_and_none_inside_fusions(name: str) -> None:
    graph, result = quantized(name, TENSORRT.name)
    places: Counter[str] = Counter()
    for number, node in result.pairs_of_nodes():
        read = [result.behind_pair(tensor) is not None for tensor in node.input]
        if "Pool" in node.op_type:
            places["pool"] += read[0]
        elif node.op_type == "Add" and not any(t in graph.constants for t in node.input):
            assert sum(read) == 1
            places["residual"] += 1
            main = graph.nodes[number].input[read.index(False)]
            assert graph.sole_reader(main) is not None
            assert graph.nodes[graph.producer[main]].op_type == "Conv"
        elif node.op_type not in ("Conv", "Gemm"):
            assert not any(read), f"a pair before {node.op_type} {node.name}"
        elif len(node.input) > 2:
            assert not read[2]
    assert (places["pool"], places["residual"]) == EXPECTED[name][1:]


@pytest.mark.parametrize("name", GRAPH_PARAMETERS)
def test_onnxruntime_quantizes_residuals_concatenations_and_biases(name: str) -> None:
    _, result = quantized(name, ONNXRUNTIME.name)
    for _, node in result.pairs_of_nodes():
        read = [result.behind_pair(tensor) is not None for tensor in node.input]
        constants = [tensor in result.original.constants for tensor in node.input]
        if node.op_type in ("Concat", "Conv", "Gemm") or (node.op_type == "Add" and not any(constants)):
            assert all(read), node.name
