"""Small ONNX networks for tests, made without a framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Network:
    """Collects nodes and constants of a graph with one FP32 input and any number of outputs."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = shape
        self.channels = {"input": shape[0]}

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        self.channels[f"{name}_out"] = self.channels.get(inputs[0], 0)
        return f"{name}_out"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def conv(self, x: str, filters: int, size: int = 3, stride: int = 1) -> str:
        fan_in = self.channels[x] * size * size
        kernel = self.random.standard_normal((filters, self.channels[x], size, size)) * np.sqrt(2.0 / fan_in)
        inputs = [x, self.constant(kernel), self.constant(self.random.standard_normal(filters) * 0.1)]
        pad = size // 2
        out = self.node("Conv", inputs, kernel_shape=[size, size], pads=[pad] * 4, strides=[stride] * 2)
        self.channels[out] = filters
        return out

    def dense(self, x: str, features: int, units: int) -> str:
        kernel = self.random.standard_normal((features, units)) / np.sqrt(features)
        return self.node("Gemm", [x, self.constant(kernel), self.constant(self.random.standard_normal(units) * 0.1)])

    def pool(self, x: str, op_type: str = "MaxPool") -> str:
        return self.node(op_type, [x], kernel_shape=[2, 2], strides=[2, 2])

    def head(self, x: str, classes: int) -> str:
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        return self.dense(pooled, self.channels[x], classes)

    def model(self, outputs: dict[str, list[int | str]]) -> onnx.ModelProto:
        """Finish: `outputs` maps tensors to their shapes; each gets an Identity-free final name by renaming."""
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", *self.shape])],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def residual_classifier(seed: int = 0, classes: int = 10, size: int = 16) -> onnx.ModelProto:
    """A stem, a max pooling, an identity block, a projection block, and a linear head."""
    net = Network((3, size, size), seed)
    x = net.node("Relu", [net.conv("input", 16)])
    x = net.pool(x)
    main = net.conv(net.node("Relu", [net.conv(x, 16)]), 16)
    x = net.node("Relu", [net.node("Add", [main, x])])
    main = net.conv(net.node("Relu", [net.conv(x, 32, stride=2)]), 32)
    x = net.node("Relu", [net.node("Add", [net.conv(x, 32, size=1, stride=2), main])])
    return net.model({net.head(x, classes): ["batch", classes]})
