"""Where Q/DQ pairs stand: properties of both dialects on random residual networks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import index_graph
from enginehouse_worker.quantization.exclusion import excluded_nodes
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.placement import place, residual_shortcut
from enginehouse_worker.quantization.rules import DIALECTS, ONNXRUNTIME, TENSORRT, Dialect
from enginehouse_worker.quantization.scales import asymmetric_scale, symmetric_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network, residual_classifier

BLOCKS = ("plain", "identity", "projection", "preactivation", "concat", "maxpool", "average")


@st.composite
def random_networks(draw: st.DrawFn) -> onnx.ModelProto:
    net = Network((3, 16, 16), draw(st.integers(0, 1000)))
    x = net.node("Relu", [net.conv("input", 8)])
    pools = 0
    for kind in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6)):
        width = net.channels[x]
        if kind == "plain":
            x = net.node("Relu", [net.conv(x, 8)])
        elif kind == "identity":
            main = net.conv(net.node("Relu", [net.conv(x, width)]), width)
            x = net.node("Relu", [net.node("Add", [main, x] if draw(st.booleans()) else [x, main])])
        elif kind == "projection":
            main = net.conv(net.node("Relu", [net.conv(x, 8)]), 8)
            short = net.conv(x, 8, size=1)
            x = net.node("Relu", [net.node("Add", [main, short] if draw(st.booleans()) else [short, main])])
        elif kind == "preactivation":
            x = net.node("Add", [net.conv(net.node("Relu", [net.conv(x, width)]), width), x])
        elif kind == "concat":
            x = net.node("Concat", [net.node("Relu", [net.conv(x, 4)]), x], axis=1)
            net.channels[x] = width + 4
        elif pools < 2:
            pools += 1
            x = net.pool(x, "MaxPool" if kind == "maxpool" else "AveragePool")
    return net.model({net.head(x, 5): ["batch", 5]})


def quantize(model: onnx.ModelProto, dialect: Dialect, bound: float = 4.0) -> onnx.ModelProto:
    graph = index_graph(model)
    placement = place(graph, dialect)
    scales = {}
    for tensor, source in placement.range_of.items():
        # As calibration finds it, what a ReLU makes is never negative.
        positive = source in graph.producer and graph.nodes[graph.producer[source]].op_type == "Relu"
        low = 0.0 if positive else -bound
        scales[tensor] = symmetric_scale(bound) if dialect.symmetric_activations else asymmetric_scale(low, bound)
    return insert(graph, placement, dialect, scales)


def through_pair(graph: object, tensor: str, producers: dict[str, onnx.NodeProto]) -> str | None:
    """The tensor behind a Q/DQ pair, or None when `tensor` does not come from one."""
    node = producers.get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    quantize_node = producers.get(node.input[0])
    if quantize_node is None:
        return node.input[0]
    return quantize_node.input[0] if quantize_node.op_type == "QuantizeLinear" else None


@settings(deadline=None, max_examples=40)
@given(model=random_networks(), dialect=st.sampled_from(sorted(DIALECTS)))
def test_every_matrix_operand_is_quantized_exactly_once(model: onnx.ModelProto, dialect: str) -> None:
    quantized = quantize(model, DIALECTS[dialect])
    onnx.checker.check_model(quantized, full_check=True)
    producers = {output: node for node in quantized.graph.node for output in node.output}
    names = {node.name: node for node in model.graph.node}
    for node in quantized.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        for position in (0, 1):
            source = through_pair(quantized, node.input[position], producers)
            assert source is not None, f"{node.name} reads {node.input[position]} unquantized"
            assert through_pair(quantized, source, producers) is None
            if position == 0:
                assert source.removesuffix("/float") == names[node.name].input[0]
    pairs = Counter(n.input[0] for n in quantized.graph.node if n.op_type == "QuantizeLinear")
    assert all(count == 1 for count in pairs.values())


@settings(deadline=None, max_examples=40)
@given(model=random_networks())
def test_tensorrt_quantizes_one_side_of_each_residual_add_and_nothing_inside_fusions(model: onnx.ModelProto) -> None:
    quantized = quantize(model, TENSORRT)
    producers = {output: node for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        if node.op_type == "Add":
            sides = [through_pair(quantized, tensor, producers) is not None for tensor in node.input]
            assert sum(sides) == 1
            main = producers[node.input[sides.index(False)]]
            assert main.op_type == "Conv", "the side that a kernel fuses comes straight from its convolution"
        if node.op_type == "Relu":
            assert producers[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            assert producers[node.input[0]].op_type == "DequantizeLinear"
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
            assert node.input[2] not in producers, "biases stay as they are"
        if node.op_type == "QuantizeLinear":
            zero_points = {t.name: t for t in quantized.graph.initializer}
            assert zero_points[node.input[2]].data_type == onnx.TensorProto.INT8


@settings(deadline=None, max_examples=15)
@given(model=random_networks())
def test_onnxruntime_runs_convolutions_in_int8_with_no_pair_left_between(model: onnx.ModelProto) -> None:
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    counts = optimized_counts(quantize(model, ONNXRUNTIME))
    assert counts["QLinearConv"] == convolutions
    assert counts["Conv"] == 0
    assert counts["QGemm"] == 1


def optimized_counts(model: onnx.ModelProto) -> Counter[str]:
    import tempfile
    from pathlib import Path

    from enginehouse_worker.backends.onnxruntime.fusion import optimized_operators

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, str(path))
        return Counter(optimized_operators(path, {}))


def test_a_residual_network_is_int8_from_end_to_end_in_onnxruntime() -> None:
    counts = optimized_counts(quantize(residual_classifier(), ONNXRUNTIME))
    assert counts["QLinearConv"] == 6
    assert counts["QLinearAdd"] == 2
    assert counts["QGemm"] == 1
    assert counts["QuantizeLinear"] == 1, "only the input is quantized at run time"
    assert counts["DequantizeLinear"] == 0
    assert counts["Relu"] == 0


def bypassed(model: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The quantized model with every pair removed and FP32 weights and biases back in place."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    producers = {output: node for node in result.graph.node for output in node.output}
    constants = {t.name for t in result.graph.initializer}
    originals = {node.name: node for node in original.graph.node}
    kept = []
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for position, tensor in enumerate(node.input):
            source = through_pair(result, tensor, producers)
            if source is not None:
                weight = source in constants or source not in producers
                node.input[position] = originals[node.name].input[position] if weight else source
        kept.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    del result.graph.initializer[:]
    result.graph.initializer.extend(original.graph.initializer)
    return result


@settings(deadline=None, max_examples=15)
@given(model=random_networks(), dialect=st.sampled_from(sorted(DIALECTS)))
def test_without_its_pairs_the_model_computes_what_it_did(model: onnx.ModelProto, dialect: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    outputs = []
    for candidate in (model, bypassed(quantize(model, DIALECTS[dialect]), model)):
        session = onnxruntime.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"input": x})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_the_shortcut_of_a_projection_is_the_shallower_branch() -> None:
    model = residual_classifier()
    graph = index_graph(model)
    adds = [number for number, node in enumerate(graph.nodes) if node.op_type == "Add"]
    assert [residual_shortcut(graph, number) for number in adds] == [1, 0]


def test_attention_quantizes_products_and_not_the_softmax() -> None:
    net = Network((8, 16))
    keys = net.node("MatMul", ["input", net.constant(net.random.standard_normal((16, 16)))])
    turned = net.node("Transpose", [keys], perm=[0, 2, 1])
    weights = net.node("Softmax", [net.node("MatMul", ["input", turned])], axis=-1)
    model = net.model({net.node("MatMul", [weights, "input"]): ["batch", 8, 16]})
    for dialect in DIALECTS.values():
        quantized = quantize(model, dialect)
        onnx.checker.check_model(quantized, full_check=True)
        producers = {output: node for node in quantized.graph.node for output in node.output}
        for node in quantized.graph.node:
            if node.op_type == "MatMul":
                assert all(producers[t].op_type == "DequantizeLinear" for t in node.input)
            if node.op_type == "Softmax":
                assert producers[node.input[0]].op_type == "MatMul"
        session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, {"input": np.ones((2, 8, 16), np.float32)})[0].shape == (2, 8, 16)


def test_exclusion_by_name_and_by_type() -> None:
    model = residual_classifier()
    graph = index_graph(model)
    first = next(node.name for node in graph.nodes if node.op_type == "Conv")
    placement = place(graph, TENSORRT, excluded_nodes(graph, [first, "Gemm"]))
    assert all(graph.nodes[n].name != first and graph.nodes[n].op_type != "Gemm" for n in placement.nodes)
    assert all(graph.nodes[w.use.node].name != first for w in placement.weights)
    everything = excluded_nodes(graph, sorted({node.op_type for node in graph.nodes}))
    for dialect in DIALECTS.values():
        assert not place(graph, dialect, everything).uses


def test_an_unknown_exclusion_lists_close_matches() -> None:
    graph = index_graph(residual_classifier())
    with pytest.raises(WorkerError) as caught:
        excluded_nodes(graph, ["conv00"])
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "conv0" in caught.value.details["close_matches"]


def test_a_tiny_weight_channel_does_not_overflow_its_bias() -> None:
    net = Network((3, 8, 8))
    x = net.conv("input", 4)
    kernel = np.zeros((4, 3, 3, 3), np.float32)
    kernel[0] = 1e-12
    net.constants[0].CopyFrom(onnx.numpy_helper.from_array(kernel, net.constants[0].name))
    bias = np.array([5.0, -3.0, 0.25, 0.0], np.float32)
    net.constants[1].CopyFrom(onnx.numpy_helper.from_array(bias, net.constants[1].name))
    model = net.model({x: ["batch", 4, 8, 8]})
    quantized = quantize(model, ONNXRUNTIME, bound=8.0)
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    out = session.run(None, {"input": np.zeros((1, 3, 8, 8), np.float32)})[0]
    np.testing.assert_allclose(out[0, :, 0, 0], bias, atol=16 / 255)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_new_names_avoid_those_that_the_model_has(dialect: str) -> None:
    net = Network((3, 8, 8))
    x = net.node("Relu", [net.conv("input", 4)])
    y = net.conv(x, 4)
    # As scopes may be called: the first convolution's tensors would get just these names.
    net.nodes[0].output[0] = net.nodes[1].input[0] = f"{x}/quantized"
    net.nodes[2].output[0] = f"{x}/dequantized"
    net.channels[f"{x}/dequantized"] = 4
    assert y == net.nodes[2].name + "_out"
    shifted = net.node("Add", [f"{x}/dequantized", net.constant(0.1)])
    net.constants[-1].name = net.nodes[-1].input[1] = f"{x}/scale"
    model = net.model({net.head(net.node("Relu", [shifted]), 5): ["batch", 5]})
    quantized = quantize(model, DIALECTS[dialect])
    onnx.checker.check_model(quantized, full_check=True)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(quantized, inputs), run(model, inputs), atol=0.3)


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_what_subgraphs_read_stays(dialect: str) -> None:
    net = Network((3, 8, 8))
    x = net.conv("input", 4)
    weight = net.nodes[-1].input[1]
    relu = net.node("Relu", [x])
    branch = [
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("ReduceMax", [weight], [f"{name}_most"], keepdims=0),
                onnx.helper.make_node(op_type, [x, f"{name}_most"], [f"{name}_out"]),
            ],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, None)],
        )
        for name, op_type in (("then", "Mul"), ("else", "Add"))
    ]
    chosen = net.node("If", [net.constant(True, np.bool_)], then_branch=branch[0], else_branch=branch[1])
    model = net.model({net.node("Add", [net.conv(relu, 4), chosen]): ["batch", 4, 8, 8]})
    quantized = quantize(model, DIALECTS[dialect], bound=8.0)
    onnx.checker.check_model(quantized, full_check=True)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(quantized, inputs), run(model, inputs), atol=0.3)


@pytest.mark.parametrize(("alpha", "integer"), [(0.25, True), (-0.25, False)])
def test_the_bias_of_a_gemm_is_in_units_of_its_scaled_product(alpha: float, integer: bool) -> None:
    net = Network((16,))
    weight = net.constant(net.random.standard_normal((16, 4)))
    y = net.node("Gemm", ["input", weight, net.constant([1.0, -2.0, 3.0, 0.5])], alpha=alpha)
    model = net.model({y: ["batch", 4]})
    quantized = quantize(model, ONNXRUNTIME)
    assert optimized_counts(quantized)["QGemm"] == integer
    inputs = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    np.testing.assert_allclose(run(quantized, inputs), run(model, inputs), atol=0.1)


def test_neither_a_mask_nor_a_sum_of_embeddings_is_a_residual() -> None:
    net = Network((8, 8))
    scores = net.node("MatMul", ["input", "input"])
    mask = net.node("Neg", ["input"])
    weights = net.node("Softmax", [net.node("Add", [scores, mask])], axis=-1)
    embedded = net.node("Add", [net.node("Abs", ["input"]), net.node("Exp", ["input"])])
    model = net.model({net.node("MatMul", [weights, embedded]): ["batch", 8, 8]})
    graph = index_graph(model)
    adds = [number for number, node in enumerate(graph.nodes) if node.op_type == "Add"]
    assert [residual_shortcut(graph, number) for number in adds] == [None, None]
