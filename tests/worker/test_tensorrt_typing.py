"""The 16-bit types of strongly typed networks: checked by ONNX, run by ONNX Runtime beside FP32."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.backends.tensorrt.folding import SMALLEST_SCALE, fold_weights, quantize, round_scales
from enginehouse_worker.backends.tensorrt.typing import COMPUTES, DEQUANTIZE, QUANTIZE, holds, holds_scale, to_half
from enginehouse_worker.conversion.preprocessing import fold_preprocessing
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.graphs.editing import EditableGraph, editable
from enginehouse_worker.graphs.index import index_graph
from enginehouse_worker.graphs.signature import graph_signature
from enginehouse_worker.quantization.insert import insert
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import TENSORRT
from enginehouse_worker.quantization.scales import symmetric_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network, residual_classifier
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs, sample_inputs
from test_placement_random import quantize as place_pairs
from transformer import encoder, sentences


def typed(model: onnx.ModelProto, precision: str = "FP16") -> onnx.ModelProto:
    graph = editable(model)
    to_half(graph, precision)
    result = graph.to_model()
    onnx.checker.check_model(result, full_check=True)
    assert [i.SerializeToString() for i in result.graph.input] == [i.SerializeToString() for i in model.graph.input]
    assert [o.SerializeToString() for o in result.graph.output] == [o.SerializeToString() for o in model.graph.output]
    return result


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As written: fusing Q/DQ into integer kernels rounds otherwise.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = rounding_to_nearest(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]


def rounding_to_nearest(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with FP16 QuantizeLinear done in FP32: ONNX Runtime 1.23's FP16 kernel for CPUs rounds toward zero."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = types(model)
    del result.graph.node[:]
    for node in model.graph.node:
        copy = result.graph.node.add() if node.op_type != QUANTIZE else onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type == QUANTIZE:
            for position in (0, 1):
                if known[node.input[position]] == TensorProto.FLOAT16:
                    copy.input[position] = f"{node.output[0]}/wide{position}"
                    wide = helper.make_node(
                        "Cast", [node.input[position]], [copy.input[position]], to=TensorProto.FLOAT
                    )
                    result.graph.node.append(wide)
            result.graph.node.append(copy)
    return result


def sqnr(model: onnx.ModelProto, other: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> float:
    """Decibels of the worst output."""
    worst = np.inf
    for expected, found in zip(run(model, inputs), run(other, inputs), strict=True):
        noise = float(np.square(found.astype(np.float64) - expected).sum())
        if noise:
            worst = min(worst, 10 * np.log10(float(np.square(expected.astype(np.float64)).sum()) / noise))
    return worst


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    found = {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.input, *graph.output)}
    return found | {t.name: t.data_type for t in inferred.graph.initializer}


def images(samples: int = 4, size: int = 16) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(1).standard_normal((samples, 3, size, size)).astype(np.float32)}


def operator(op_type: str, *constants: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """conv -> the operator -> conv."""
    net = Network((4, 8, 8))
    x = net.node(op_type, [net.conv("input", 4), *(net.constant(c, c.dtype) for c in constants)], **attributes)
    net.channels[x] = 4
    return net.model({net.conv(x, 4): ["batch", 4, "h", "w"]})


def reads(model: onnx.ModelProto, op_type: str) -> list[int]:
    """The types that the first node of an operator reads."""
    node = next(n for n in model.graph.node if n.op_type == op_type)
    known = types(model)
    return [known[name] for name in node.input if name]


def test_a_convolutional_network_in_fp16_is_the_network() -> None:
    model = residual_classifier()
    half = typed(model)
    assert sqnr(model, half, images()) > 55
    known = types(half)
    for node in half.graph.node:
        if node.op_type in COMPUTES:
            assert {known[name] for name in node.input} == {TensorProto.FLOAT16}, node.name
    # One Cast at either end, none between.
    assert Counter(n.op_type for n in half.graph.node)["Cast"] == 2
    assert half.ByteSize() < 0.55 * model.ByteSize()


def test_a_quantized_network_keeps_its_operators_between_dq_and_q() -> None:
    model = residual_classifier()
    quantized = symmetric_pairs(model)
    half = typed(quantized)
    # Values at the edge of two INT8 steps fall to the other one, so the two differ from each other, not from FP32.
    assert sqnr(model, half, images()) > sqnr(model, quantized, images()) - 1
    assert half.opset_import[0].version == 19
    producers = {name: node for node in half.graph.node for name in node.output}
    known = types(half)
    convolutions = [n for n in half.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 6
    for node in convolutions:
        assert [producers[name].op_type for name in node.input[:2]] == [DEQUANTIZE] * 2
        assert known[node.output[0]] == TensorProto.FLOAT16
        # INT8 weights behind DQ alone.
        assert known[producers[node.input[1]].input[0]] == TensorProto.INT8
        assert producers[node.input[1]].input[0] not in producers
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    assert not any(producers.get(n.input[0], n).op_type == DEQUANTIZE for n in casts)


def symmetric_pairs(model: onnx.ModelProto, amax: float = 4.0) -> onnx.ModelProto:
    graph = index_graph(model)
    placement = place(graph, TENSORRT)
    return insert(graph, placement, TENSORRT, {t: symmetric_scale(amax) for t in placement.range_of})


def test_an_activation_scale_that_fp16_rounds_away_keeps_its_operators_in_fp32() -> None:
    model = residual_classifier()
    quantized = symmetric_pairs(model, amax=1e-6)
    half = typed(quantized)
    for node in half.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert types(half)[node.input[0]] == TensorProto.FLOAT, node.name
    assert sqnr(quantized, half, images()) > 40


def test_a_transformer_keeps_its_softmax_and_its_statistics_in_fp32() -> None:
    model = encoder()
    half = typed(model)
    assert sqnr(model, half, sentences(4)) > 45
    for node in half.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "ReduceMean", "Pow", "Sqrt"):
            assert types(half)[node.input[0]] == TensorProto.FLOAT
        if node.op_type == "MatMul":
            assert types(half)[node.input[0]] == TensorProto.FLOAT16


@settings(deadline=None, max_examples=12)
@given(model=random_graphs())
def test_random_networks_in_fp16_are_valid_and_near(model: onnx.ModelProto) -> None:
    assert sqnr(model, typed(model), {"input": sample_inputs(4)}) > 40


@settings(deadline=None, max_examples=6)
@given(model=random_graphs())
def test_random_quantized_networks_in_fp16_are_valid_and_near(model: onnx.ModelProto) -> None:
    _, quantized = place_pairs(model, TENSORRT)
    inputs = {"input": sample_inputs(4)}
    # In a network of a few channels, values that round the other way in FP16 are a good part of the noise.
    assert sqnr(model, typed(quantized), inputs) > min(sqnr(model, quantized, inputs) - 8, 40)


@settings(deadline=None, max_examples=5)
@given(model=random_graphs())
def test_random_networks_in_bf16_are_valid(model: onnx.ModelProto) -> None:
    result = typed(model, "BF16")
    assert TensorProto.BFLOAT16 in types(result).values()
    assert TensorProto.FLOAT16 not in types(result).values()


def test_bf16_weights_are_the_nearest_bf16_values() -> None:
    model = residual_classifier()
    half = typed(model, "BF16")
    assert half.opset_import[0].version == 22
    originals = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rounded = {t.name.removesuffix("/half"): numpy_helper.to_array(t) for t in half.graph.initializer}
    for name, value in originals.items():
        error = np.abs(rounded[name].astype(np.float32) - value)
        assert np.all(error <= np.abs(value) * 2.0**-8)


def test_resize_keeps_its_scales_and_its_type() -> None:
    scales = np.array([1, 1, 1.3333334, 1.3333334], np.float32)
    model = operator("Resize", np.zeros(0, np.float32), scales, mode="linear")
    half = typed(model)
    assert reads(half, "Resize") == [TensorProto.FLOAT] * 3
    assert sqnr(model, half, {"input": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}) > 50


@pytest.mark.parametrize("value", [3.4e38, -1e9, 1e-6])
def test_a_constant_that_fp16_cannot_hold_keeps_its_operator_in_fp32(value: float) -> None:
    model = operator("Add", np.array(value, np.float32))
    assert reads(typed(model), "Add") == [TensorProto.FLOAT] * 2
    assert reads(typed(model, "BF16"), "Add") == [TensorProto.BFLOAT16] * 2


@pytest.mark.parametrize("precision", ["FP16", "BF16", "INT8"])
@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_are_normalized_in_fp32_and_transposed_in_16_bits(precision: str, bgr: bool) -> None:
    model = residual_classifier()
    graph = editable(model)
    fold_preprocessing(graph, graph_signature(model), Preprocessing((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), bgr=bgr))
    folded = graph.to_model()
    source = symmetric_pairs(folded, amax=160.0) if precision == "INT8" else folded
    half = typed(source, precision)
    known = types(half)
    first = [node for node in half.graph.node if node.op_type != DEQUANTIZE or node.input[0] not in constants(half)]
    # From bytes to what the convolution reads there is one kernel's worth of arithmetic, and then the move.
    assert [node.op_type for node in first[:4]] == ["Cast", "Sub", "Cast", "Transpose"]
    wide = TensorProto.BFLOAT16 if precision == "BF16" else TensorProto.FLOAT16
    assert [known[node.output[0]] for node in first[:4]] == [TensorProto.FLOAT, TensorProto.FLOAT, wide, wide]
    if precision == "BF16":  # ONNX Runtime computes none of it in BF16
        return
    pixels = {"input": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)}
    # In so small a network, INT8 values that round the other way after FP16 are a good part of the noise.
    assert sqnr(folded, half, pixels) > (sqnr(folded, source, pixels) - 3 if precision == "INT8" else 55)
    values = next(node for node in half.graph.node if node.op_type == "Transpose").output[0]
    exact = pixels["input"].astype(np.float32) - np.array((123.7, 116.3, 103.5), np.float32)[:: -1 if bgr else 1]
    probe = onnx.ModelProto()
    probe.CopyFrom(half)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(values, TensorProto.FLOAT16, None))
    # Rounded once.
    assert np.array_equal(run(probe, pixels)[0], exact.transpose(0, 3, 1, 2).astype(np.float16))


def constants(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_channels_that_are_reordered_stay_pixels() -> None:
    net = Network((8, 8, 3))
    x = net.node("Cast", ["input"], to=TensorProto.FLOAT)
    x = net.node("Gather", [x, net.constant([2, 1, 0], np.int64)], axis=3)
    x = net.node("Mul", [net.node("Sub", [x, net.constant(123.7)]), net.constant(0.017)])
    x = net.node("Transpose", [x], perm=[0, 3, 1, 2])
    net.channels[x] = 3
    model = net.model({net.conv(x, 4): ["batch", 4, 8, 8]})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    half = typed(model)
    operators = [node.op_type for node in half.graph.node]
    assert operators == ["Cast", "Gather", "Sub", "Mul", "Cast", "Transpose", "Conv", "Cast"]
    assert [reads(half, op)[0] for op in ("Gather", "Sub", "Mul", "Transpose")] == [1, 1, 1, 10]


def test_a_square_is_fp32_since_it_overflows_first() -> None:
    net = Network((4, 8, 8))
    x = net.conv("input", 4)
    model = net.model({net.node("ReduceMean", [net.node("Mul", [x, x])], axes=[1]): ["batch", 1, 8, 8]})
    half = typed(model)
    assert reads(half, "Mul") == [TensorProto.FLOAT] * 2
    large = {"input": np.full((1, 4, 8, 8), 1000, np.float32)}
    assert np.all(np.isfinite(run(half, large)[0]))


def test_arithmetic_on_shapes_stays_fp32() -> None:
    net = Network((4, 8, 8))
    x = net.conv("input", 4)
    size = net.node("Cast", [net.node("Shape", [x])], to=TensorProto.FLOAT)
    size = net.node("Cast", [net.node("Mul", [size, net.constant([1, 1, 1.1, 1.1])])], to=TensorProto.INT64)
    x = net.node("Resize", [x, "", "", size], mode="nearest")
    model = net.model({x: ["batch", 4, "h", "w"]})
    assert reads(typed(model), "Mul") == [TensorProto.FLOAT] * 2


def test_what_a_subgraph_reads_keeps_its_name_and_type() -> None:
    net = Network((4, 8, 8))
    x = net.conv("input", 4)
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [x], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    y = net.node("If", [net.constant(True, np.bool_)], **branches)
    net.channels[y] = 4
    model = net.model({net.conv(y, 4): ["batch", 4, 8, 8]})
    given_inputs = {"input": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    assert sqnr(model, typed(model), given_inputs) > 50


def test_an_output_that_is_also_read_inside_is_fp32_outside_and_fp16_inside() -> None:
    net = Network((4, 8, 8))
    x = net.conv("input", 4)
    model = net.model({x: ["batch", 4, 8, 8], net.conv(x, 4): ["batch", 4, 8, 8]})
    half = typed(model)
    assert [t for n in half.graph.node if n.op_type == "Conv" for t in [types(half)[n.input[0]]]] == [10, 10]


@given(st.lists(st.floats(1e-12, 1e4), min_size=1, max_size=20))
def test_rounded_scales_are_fp16_values_and_no_smaller(values: list[float]) -> None:
    scale = np.array(values, np.float32)
    rounded = round_scales(scale)
    assert holds_scale(rounded)
    assert np.all(rounded >= scale)
    assert np.all(rounded <= np.maximum(scale * np.float32(1.13), SMALLEST_SCALE))


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4), st.booleans())
def test_folded_weights_are_within_half_a_step(values: list[float], per_channel: bool) -> None:
    value = np.array(values, np.float32).reshape(2, 2)
    greatest = np.abs(value).max(axis=1) if per_channel else np.abs(value).max()
    scale = round_scales(np.maximum(greatest, 1e-9).astype(np.float32) / np.float32(127))
    whole = scale[:, None] if per_channel else scale
    assert np.all(np.abs(quantize(value, scale, 0) * whole - value) <= whole * 0.5001)


def test_only_symmetric_int8_weights_are_folded() -> None:
    def pairs(zero_point: np.ndarray) -> EditableGraph:
        net = Network((4, 8, 8))
        weight = net.constant(np.ones((4, 4, 1, 1)))
        parameters = [net.constant(0.1), net.constant(zero_point, zero_point.dtype)]
        weight = net.node(DEQUANTIZE, [net.node(QUANTIZE, [weight, *parameters]), *parameters])
        graph = editable(net.model({net.node("Conv", ["input", weight]): ["batch", 4, 8, 8]}))
        fold_weights(graph)
        return graph

    assert [n.op_type for n in pairs(np.array(0, np.int8)).nodes] == [DEQUANTIZE, "Conv"]
    assert len(pairs(np.array(3, np.int8)).nodes) == 3
    assert len(pairs(np.array(128, np.uint8)).nodes) == 3


def test_what_fp16_holds() -> None:
    assert holds(np.array([65504.0, 1e-9])) and holds(np.zeros(3)) and holds(np.array([np.inf, 1.0]))
    assert not holds(np.array([65505.0])) and not holds(np.array([1e-5, -1e-6]))
    assert (
        holds_scale(np.array([2.0**-24, 0.01]))
        and not holds_scale(np.array([1e-6]))
        and not holds_scale(np.array([1e5]))
    )
