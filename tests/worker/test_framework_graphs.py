"""The benchmark of two frameworks: which graphs count as the same network, and where weights go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from frameworks.cpu import median_interval, ratio  # noqa: E402
from frameworks.topology import Graph, difference, with_weights  # noqa: E402


def network(seed: int, *, style: str, stride_first: bool = True) -> onnx.ModelProto:
    """A stem with a pool, one residual block and a classifier, as two exporters would write it."""
    random = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values), f"{style}/{name}"))
        return weights[-1].name

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{style}/{name}"], **attributes))
        return f"{style}/{name}"

    def convolution(x: str, name: str, shape: tuple[int, ...], stride: int = 1) -> str:
        w = constant(f"{name}/w", random.standard_normal(shape).astype(np.float32))
        b = constant(f"{name}/b", random.standard_normal(shape[0]).astype(np.float32))
        pad = [shape[2] // 2] * 4
        given = {"pads": pad} if style == "torch" or any(pad) else {}
        return node("Conv", [x, w, b], name, kernel_shape=shape[2:], strides=[stride] * 2, **given)

    x = node("Relu", [convolution("image", "stem", (4, 3, 3, 3))], "relu")
    if style == "keras":
        pads = constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        x = node("MaxPool", [node("Pad", [x, pads], "pad")], "pool", kernel_shape=[3, 3], strides=[2, 2])
    else:
        x = node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=0)
    first, second = (2, 1) if stride_first else (1, 2)
    inner = node("Relu", [convolution(x, "one", (4, 4, 1, 1), first)], "relu1")
    inner = convolution(inner, "two", (8, 4, 3, 3), second)
    shortcut = convolution(x, "shortcut", (8, 4, 1, 1), 2)
    x = node("Add", [shortcut, inner] if style == "keras" else [inner, shortcut], "add")
    x = node("GlobalAveragePool", [node("Relu", [x], "relu2")], "mean")
    matrix = random.standard_normal((8, 5)).astype(np.float32)
    bias = random.standard_normal(5).astype(np.float32)
    if style == "keras":
        x = node("Squeeze", [x, constant("axes", np.array([2, 3], np.int64))], "flat")
        x = node("Gemm", [x, constant("fc", matrix), constant("fc/b", bias)], "logits")
    else:
        x = node("Flatten", [x], "flat", axis=1)
        x = node("Gemm", [x, constant("fc", matrix.T.copy()), constant("fc/b", bias)], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        style,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 5])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def answer(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(9).standard_normal((2, 3, 16, 16), dtype=np.float32)
    return session.run(None, {"image": images})[0]


def test_exporters_ways_of_writing_one_network_count_as_the_same() -> None:
    keras, torch = Graph(network(0, style="keras")), Graph(network(1, style="torch"))
    found = difference(keras, torch)
    assert found["same"]
    assert found["only_left"] == found["only_right"] == []
    assert found["parameters"][0] == found["parameters"][1] == keras.parameters()
    assert found["operators"][0] != found["operators"][1]


def test_weights_of_one_make_the_other_compute_the_same() -> None:
    keras, torch = network(0, style="keras"), network(1, style="torch")
    assert not np.allclose(answer(keras), answer(torch), atol=1e-3)
    np.testing.assert_allclose(answer(with_weights(Graph(keras), Graph(torch))), answer(torch), rtol=1e-4, atol=1e-4)


def test_a_stride_elsewhere_is_another_network_and_is_named() -> None:
    keras = Graph(network(0, style="keras"))
    torch = Graph(network(0, style="torch", stride_first=False))
    found = difference(keras, torch)
    assert not found["same"]
    assert sorted(layer["strides"] for layer in found["only_left"]) == [[1, 1], [2, 2]]
    with pytest.raises(ValueError, match="the graphs differ"):
        with_weights(keras, torch)


def test_a_skipped_relu_is_another_network() -> None:
    torch = network(0, style="torch")
    without = onnx.ModelProto()
    without.CopyFrom(torch)
    relu = next(node for node in without.graph.node if node.output[0] == "torch/relu1")
    reader = next(node for node in without.graph.node if "torch/relu1" in node.input)
    reader.input[0] = relu.input[0]
    without.graph.node.remove(relu)
    assert not difference(Graph(torch), Graph(without))["same"]


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        _, low, high = median_interval(random.exponential(size=12).tolist())
        held += low <= np.log(2) <= high
    # 12 values: the third smallest to the third largest hold the median in 96.1 % of all cases.
    assert 0.945 < held / 2000 < 0.98
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_a_ratio_pairs_windows_that_were_next_to_each_other() -> None:
    base = [10.0, 20.0, 40.0, 10.0, 5.0, 8.0]
    found = ratio([value * 1.1 for value in base], base)
    assert found == {"ratio": 1.1, "interval": [1.1, 1.1], "windows": 6}
