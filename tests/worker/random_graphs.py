"""Random ONNX networks for property tests: what converters write, and what they seldom do.

Chains of convolutions with batch norms and activations, residuals of every kind, attention, squeeze and excitation,
shared weights and tensors, nodes without names, and graph outputs that are also read inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

SIZE = 8
INPUT = "input"
_ACTIVATIONS = ("none", "relu", "relu", "clip", "sigmoid", "leaky", "swish")
_CONVOLUTIONS = ("plain", "plain", "pointwise", "depthwise", "grouped", "transposed")
BLOCKS = (
    "convolution", "convolution", "residual", "residual", "preactivation", "late add", "concat", "maxpool", "average",
    "attention", "excitation", "shared weights", "output", "reshape", "softmax", "pad",
)  # fmt: skip


@dataclass
class Builder:
    """A graph under construction. `shapes` are without the batch dimension."""

    draw: Any
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {INPUT: (3, SIZE, SIZE)})
    outputs: list[str] = field(default_factory=list)

    def node(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Append a node; one in eight has no name."""
        number = len(self.nodes)
        output = f"{op_type.lower()}{number}/out"
        name = "" if self.draw(st.integers(0, 7)) == 0 else f"{op_type.lower()}{number}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        self.shapes[output] = shape
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def normal(self, *shape: int, deviation: float = 1.0) -> str:
        return self.constant(self.random.standard_normal(shape) * deviation)

    def convolution(self, x: str, filters: int, kind: str = "plain", weight: str | None = None) -> str:
        """A convolution that keeps the size (with stride 1), with or without a bias and a batch norm."""
        channels, height, width = self.shapes[x]
        size = 1 if kind == "pointwise" else 3
        group = {"depthwise": channels, "grouped": 2}.get(kind, 1)
        if kind == "depthwise":
            filters = channels
        inner = channels // group
        shape = (channels, filters, size, size) if kind == "transposed" else (filters, inner, size, size)
        deviation = float(np.sqrt(2.0 / (inner * size * size)))
        inputs = [x, weight or self.normal(*shape, deviation=deviation)]
        normalized = self.draw(st.booleans())
        if not normalized or self.draw(st.booleans()):
            inputs.append(self.normal(filters, deviation=0.1))
        op_type = "ConvTranspose" if kind == "transposed" else "Conv"
        x = self.node(op_type, inputs, (filters, height, width), pads=[size // 2] * 4, group=group)
        return self.batch_norm(x) if normalized else x

    def batch_norm(self, x: str) -> str:
        channels = self.shapes[x][0]
        variance = self.constant(self.random.uniform(0.5, 2.0, channels))
        scale = self.constant(self.random.uniform(0.5, 1.5, channels))
        rest = [self.normal(channels, deviation=0.1), self.normal(channels, deviation=0.1), variance]
        return self.node("BatchNormalization", [x, scale, *rest], self.shapes[x])

    def activation(self, x: str, kind: str | None = None) -> str:
        kind = kind or self.draw(st.sampled_from(_ACTIVATIONS))
        shape = self.shapes[x]
        if kind == "relu":
            return self.node("Relu", [x], shape)
        if kind == "clip":
            return self.node("Clip", [x, self.constant(0.0), self.constant(6.0)], shape)
        if kind == "sigmoid":
            return self.node("Sigmoid", [x], shape)
        if kind == "leaky":
            return self.node("LeakyRelu", [x], shape, alpha=0.1)
        if kind == "swish":
            return self.node("Mul", [x, self.node("Sigmoid", [x], shape)], shape)
        return x

    def residual(self, x: str) -> str:
        filters = self.shapes[x][0] if self.draw(st.booleans()) else 8
        main = self.activation(self.convolution(x, filters), "relu")
        main = self.convolution(main, filters)
        shortcut = x if filters == self.shapes[x][0] else self.convolution(x, filters, "pointwise")
        return self.activation(self.add(main, shortcut))

    def preactivation(self, x: str) -> str:
        main = self.convolution(self.activation(self.batch_norm(x), "relu"), self.shapes[x][0])
        return self.add(main, x)

    def late_add(self, x: str) -> str:
        """An Add that no convolution can take in: its main branch has an activation first."""
        return self.add(self.activation(self.convolution(x, self.shapes[x][0]), "relu"), x)

    def add(self, left: str, right: str) -> str:
        sides = [left, right] if self.draw(st.booleans()) else [right, left]
        return self.node("Add", sides, self.shapes[left])

    def concat(self, x: str) -> str:
        parts = [self.activation(self.convolution(x, 4)) for _ in range(self.draw(st.integers(1, 2)))]
        parts.append(x)
        _, height, width = self.shapes[x]
        return self.node("Concat", parts, (sum(self.shapes[p][0] for p in parts), height, width), axis=1)

    def pooled(self, x: str, op_type: str) -> str:
        channels, height, width = self.shapes[x]
        if height < 4:
            return x
        return self.node(op_type, [x], (channels, height // 2, width // 2), kernel_shape=[2, 2], strides=[2, 2])

    def attention(self, x: str) -> str:
        """Self-attention over positions, with a residual, around two reshapes."""
        channels, height, width = self.shapes[x]
        places = height * width
        flat = self.node("Reshape", [x, self.constant([0, channels, places], np.int64)], (channels, places))
        rows = self.node("Transpose", [flat], (places, channels), perm=[0, 2, 1])
        project = [
            self.node("MatMul", [rows, self.normal(channels, channels, deviation=channels**-0.5)], (places, channels))
            for _ in range(3)
        ]
        turned = self.node("Transpose", [project[1]], (channels, places), perm=[0, 2, 1])
        scores = self.node("MatMul", [project[0], turned], (places, places))
        scores = self.node("Mul", [scores, self.constant(channels**-0.5)], (places, places))
        weights = self.node("Softmax", [scores], (places, places), axis=-1)
        mixed = self.node("MatMul", [weights, project[2]], (places, channels))
        rows = self.add(mixed, rows)
        flat = self.node("Transpose", [rows], (channels, places), perm=[0, 2, 1])
        return self.node("Reshape", [flat, self.constant([0, channels, height, width], np.int64)], self.shapes[x])

    def excitation(self, x: str) -> str:
        channels = self.shapes[x][0]
        squeezed = self.node("GlobalAveragePool", [x], (channels, 1, 1))
        inner = self.activation(self.convolution(squeezed, 4, "pointwise"), "relu")
        gate = self.activation(self.convolution(inner, channels, "pointwise"), "sigmoid")
        return self.node("Mul", [x, gate], self.shapes[x])

    def shared_weights(self, x: str) -> str:
        channels = self.shapes[x][0]
        weight = self.normal(channels, channels, 3, 3, deviation=float(np.sqrt(2.0 / (channels * 9))))
        x = self.activation(self.convolution(x, channels, weight=weight))
        return self.convolution(x, channels, weight=weight)

    def block(self, kind: str, x: str) -> str:
        channels, height, width = self.shapes[x]
        if kind == "convolution":
            form = self.draw(st.sampled_from(_CONVOLUTIONS))
            form = "plain" if form == "grouped" and channels % 2 else form
            return self.activation(self.convolution(x, 8, form))
        if kind in ("maxpool", "average"):
            return self.pooled(x, "MaxPool" if kind == "maxpool" else "AveragePool")
        if kind == "output":
            if x not in self.outputs and x != INPUT:
                self.outputs.append(x)
            return x
        if kind == "reshape":
            flat = self.node("Reshape", [x, self.constant([0, -1], np.int64)], (channels * height * width,))
            shape = (channels, width, height)
            return self.node("Reshape", [flat, self.constant([0, *shape], np.int64)], shape)
        if kind == "softmax":
            return self.node("Softmax", [x], self.shapes[x], axis=1)
        if kind == "pad":
            if height > SIZE:
                return x
            pads = self.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
            return self.node("Pad", [x, pads], (channels, height + 2, width + 2))
        make = {
            "residual": self.residual, "preactivation": self.preactivation, "late add": self.late_add,
            "concat": self.concat, "attention": self.attention, "excitation": self.excitation,
            "shared weights": self.shared_weights,
        }  # fmt: skip
        return make[kind](x)

    def head(self, x: str) -> str:
        channels = self.shapes[x][0]
        pooled = self.node("GlobalAveragePool", [x], (channels, 1, 1))
        flat = self.node("Flatten", [pooled], (channels,))
        bias = self.normal(5, deviation=0.1)
        if self.draw(st.booleans()):
            weight = self.normal(channels, 5, deviation=channels**-0.5)
            x = self.node("Add", [self.node("MatMul", [flat, weight], (5,)), bias], (5,))
        else:
            turned = self.draw(st.booleans())
            shape = (5, channels) if turned else (channels, 5)
            weight = self.normal(*shape, deviation=channels**-0.5)
            scale = self.draw(st.sampled_from([1.0, 1.0, 0.5]))
            x = self.node("Gemm", [flat, weight, bias], (5,), transB=int(turned), alpha=scale)
        return self.node("Softmax", [x], (5,), axis=-1) if self.draw(st.booleans()) else x

    def model(self, last: str) -> onnx.ModelProto:
        outputs = [*self.outputs, last]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["batch", *self.shapes[INPUT]])],
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *self.shapes[name]])
                for name in dict.fromkeys(outputs)
            ],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


@st.composite
def random_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A network of one to six random blocks with a head, FP32 input (batch, 3, 8, 8), opset 17."""
    builder = Builder(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    x = builder.activation(builder.convolution(INPUT, 8))
    kept = [x]
    for kind in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6)):
        x = builder.block(kind, x)
        alike = [t for t in kept if builder.shapes[t] == builder.shapes[x] and t != x]
        if alike and draw(st.integers(0, 4)) == 0:
            # A long skip from an earlier tensor, which others read too.
            x = builder.add(x, draw(st.sampled_from(alike)))
        kept.append(x)
    return builder.model(builder.head(x))


def sample_inputs(samples: int, seed: int = 0) -> np.ndarray:
    """Inputs for `random_graphs`, (samples, 3, 8, 8)."""
    return np.random.default_rng(seed).standard_normal((samples, 3, SIZE, SIZE)).astype(np.float32)
