"""Both dialects on random networks: where pairs stand, and that the network is otherwise what it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from enginehouse_worker.calibration.collect import collect, tensors_to_calibrate, with_outputs
from enginehouse_worker.calibration.methods import Range, choose_range
from enginehouse_worker.graphs.index import GraphIndex, index_graph
from enginehouse_worker.quantization.exclusion import excluded_nodes
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import DIALECTS, TENSORRT, Dialect
from enginehouse_worker.quantization.scales import asymmetric_scale, symmetric_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_graphs import QuantizedGraph, bypassed
from random_graphs import INPUT, random_graphs, sample_inputs

dialects = st.sampled_from(sorted(DIALECTS))
MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def calibrated(graph: GraphIndex, samples: int = 4) -> dict[str, Range]:
    tensors = tensors_to_calibrate(graph)
    probe = with_outputs(graph, [name for name in tensors if name not in graph.inputs])
    histograms = collect(probe, tensors, [{INPUT: sample_inputs(samples)}])
    return {name: choose_range(histogram, "max", 100.0) for name, histogram in histograms.items()}


def quantize(
    model: onnx.ModelProto, dialect: Dialect, excluded: frozenset[int] = frozenset()
) -> tuple[GraphIndex, onnx.ModelProto]:
    graph = index_graph(model)
    placement = place(graph, dialect, excluded)
    ranges = calibrated(graph)
    scales = {}
    for tensor, source in placement.range_of.items():
        found = ranges[source]
        symmetric = dialect.symmetric_activations
        scales[tensor] = symmetric_scale(found.amax) if symmetric else asymmetric_scale(found.rmin, found.rmax)
    return graph, insert(graph, placement, dialect, scales, largest_weight=63)


def run(model: onnx.ModelProto, optimized: bool = True) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {INPUT: sample_inputs(4)}))


@settings(deadline=None, max_examples=25)
@given(model=random_graphs(), dialect=dialects)
def test_every_operand_of_a_matrix_operator_is_quantized_exactly_once(model: onnx.ModelProto, dialect: str) -> None:
    graph, result = quantize(model, DIALECTS[dialect])
    onnx.checker.check_model(result, full_check=True)
    quantized = QuantizedGraph(graph, result)
    for number, node in quantized.pairs_of_nodes():
        if node.op_type not in DIALECTS[dialect].operators or node.op_type not in MATRIX:
            continue
        for position in (0, 1):
            source = quantized.behind_pair(node.input[position])
            assert source is not None, f"{node.op_type} {node.name} reads {node.input[position]} in FP32"
            assert quantized.behind_pair(source) is None, "quantized twice"
            if source in quantized.producers:
                assert quantized.original_name(source) == graph.nodes[number].input[position]
    sources = Counter(node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear")
    assert all(count == 1 for count in sources.values())


@settings(deadline=None, max_examples=25)
@given(model=random_graphs())
def test_tensorrt_fuses_what_it_can(model: onnx.ModelProto) -> None:
    graph, result = quantize(model, TENSORRT)
    quantized = QuantizedGraph(graph, result)
    for number, node in quantized.pairs_of_nodes():
        read = [quantized.behind_pair(tensor) is not None for tensor in node.input]
        if node.op_type in ("BatchNormalization", "Relu", "Clip", "Sigmoid", "LeakyRelu", "Softmax", "Mul", "Concat"):
            assert not any(read), f"a pair before {node.op_type}"
        if node.op_type in MATRIX and len(node.input) == 3:
            assert not read[2], "a quantized bias"
        if node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            assert read[0]
        if node.op_type == "Add":
            original = graph.nodes[number]
            if any(tensor in graph.constants for tensor in original.input):
                assert not any(read), "a pair before a bias"
            elif {graph.nodes[r.node].op_type for r in graph.readers.get(original.output[0], ())} == {"Softmax"}:
                assert not any(read), "a pair before what a Softmax reads"
            else:
                assert sum(read) == (original.input[0] != original.input[1]), "one side of a residual"
                if not all(read) and any(read):
                    main, shortcut = original.input[read.index(False)], original.input[read.index(True)]
                    assert fusible(graph, main) or not fusible(graph, shortcut)
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = next(t for t in result.graph.initializer if t.name == node.input[2])
            assert zero_point.data_type == onnx.TensorProto.INT8
            assert not onnx.numpy_helper.to_array(zero_point).any()


def fusible(graph: GraphIndex, tensor: str) -> bool:
    """Written for one reader by a matrix operator, its bias and batch norm included."""
    if len(graph.readers.get(tensor, ())) != 1 or tensor in graph.outputs or tensor not in graph.producer:
        return False
    node = graph.nodes[graph.producer[tensor]]
    if node.op_type == "BatchNormalization" or (node.op_type == "Add" and node.input[1] in graph.constants):
        return fusible(graph, node.input[0])
    return node.op_type in MATRIX


@settings(deadline=None, max_examples=20)
@given(model=random_graphs(), dialect=dialects)
def test_with_quantization_bypassed_the_network_computes_the_same_bits(model: onnx.ModelProto, dialect: str) -> None:
    graph, result = quantize(model, DIALECTS[dialect])
    restored = bypassed(graph, result)
    onnx.checker.check_model(restored, full_check=True)
    for expected, found in zip(run(model, optimized=False), run(restored, optimized=False), strict=True):
        np.testing.assert_array_equal(expected, found)


@settings(deadline=None, max_examples=20)
@given(model=random_graphs(), dialect=dialects)
def test_the_quantized_network_is_close_to_the_original(model: onnx.ModelProto, dialect: str) -> None:
    _, result = quantize(model, DIALECTS[dialect])
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    for expected, found in zip(run(model), run(result), strict=True):
        assert found.shape == expected.shape
        noise = float(((expected - found) ** 2).sum())
        assert noise < 0.1 * float((expected**2).sum()) + 1e-9


@settings(deadline=None, max_examples=20)
@given(model=random_graphs(), dialect=dialects, data=st.data())
def test_what_is_excluded_stays_in_fp32(model: onnx.ModelProto, dialect: str, data: st.DataObject) -> None:
    graph = index_graph(model)
    names = sorted({key for node in graph.nodes for key in (node.name, node.op_type) if key})
    excluded = excluded_nodes(graph, data.draw(st.lists(st.sampled_from(names), max_size=4)))
    placement = place(graph, DIALECTS[dialect], excluded)
    assert not placement.nodes & excluded
    assert not {weight.use.node for weight in placement.weights} & excluded
    assert not {use.node for use in placement.biases} & excluded
    if dialect == "tensorrt":
        assert not {use.node for use in placement.uses} & excluded
    _, result = quantize(model, DIALECTS[dialect], excluded)
    onnx.checker.check_model(result, full_check=True)
    for number, node in QuantizedGraph(graph, result).pairs_of_nodes():
        if number in excluded:
            for position, tensor in enumerate(graph.nodes[number].input):
                if tensor in graph.constants:
                    assert node.input[position] == tensor, "its weights are as they were"
