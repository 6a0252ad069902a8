"""A transformer encoder in ONNX, as exporters write one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# What masks add to the scores of padding.
_MASKED = -10000.0


@dataclass
class _Graph:
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def normal(self, name: str, *shape: int, deviation: float = 1.0) -> str:
        return self.constant(self.random.standard_normal(shape) * deviation, name)

    def dense(self, x: str, inputs: int, units: int, name: str) -> str:
        product = self.node("MatMul", [x, self.normal(f"{name}/weight", inputs, units, deviation=inputs**-0.5)], name)
        return self.node("Add", [product, self.normal(f"{name}/bias", units, deviation=0.1)], f"{name}/add")

    def layer_norm(self, x: str, width: int, name: str, decomposed: bool) -> str:
        scale = self.constant(self.random.uniform(0.5, 1.5, width), f"{name}/scale")
        bias = self.normal(f"{name}/shift", width, deviation=0.1)
        if not decomposed:
            return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-5)
        mean = self.node("ReduceMean", [x], f"{name}/mean", axes=[-1])
        centred = self.node("Sub", [x, mean], f"{name}/sub")
        squared = self.node("Pow", [centred, self.constant(2.0, f"{name}/two")], f"{name}/pow")
        variance = self.node("ReduceMean", [squared], f"{name}/variance", axes=[-1])
        shifted = self.node("Add", [variance, self.constant(1e-5, f"{name}/epsilon")], f"{name}/add_epsilon")
        normal = self.node("Div", [centred, self.node("Sqrt", [shifted], f"{name}/sqrt")], f"{name}/div")
        return self.node("Add", [self.node("Mul", [normal, scale], f"{name}/mul"), bias], f"{name}/add")

    def gelu(self, x: str, name: str) -> str:
        inner = self.node("Div", [x, self.constant(2.0**0.5, f"{name}/root")], f"{name}/div")
        one = self.node(
            "Add", [self.node("Erf", [inner], f"{name}/erf"), self.constant(1.0, f"{name}/one")], f"{name}/add"
        )
        return self.node(
            "Mul", [self.node("Mul", [x, one], f"{name}/mul"), self.constant(0.5, f"{name}/half")], f"{name}/gelu"
        )


def encoder(
    *, layers: int = 2, width: int = 64, heads: int = 4, words: int = 100, longest: int = 32, classes: int = 8,
    decomposed: bool = False, seed: int = 0,
) -> onnx.ModelProto:  # fmt: skip
    """A post-norm encoder with a classifier on the first position.

    Inputs: `input_ids` and `attention_mask`, INT64 (batch, sequence), mask 0 or 1. Output: `logits`, FP32 (batch,
    classes). `decomposed`: LayerNormalization (opset 17) is written as its parts (opset 13).
    """
    g = _Graph(np.random.default_rng(seed))
    size = width // heads
    token = g.node("Gather", ["embeddings/word", "input_ids"], "embeddings/gather")
    g.normal("embeddings/word", words, width)
    shape = g.node("Shape", ["input_ids"], "shape")
    length = g.node("Gather", [shape, g.constant(1, "one", np.int64)], "length", axis=0)
    end = g.node("Unsqueeze", [length, g.constant([0], "axis0", np.int64)], "end")
    slices = [g.constant([0], "begin", np.int64), end, g.constant([0], "axes", np.int64)]
    place = g.node("Slice", [g.normal("embeddings/position", longest, width, deviation=0.5), *slices], "positions")
    kind = g.node("Gather", [g.normal("embeddings/kind", 2, width, deviation=0.2), "attention_mask"], "kinds")
    x = g.node("Add", [token, kind], "embeddings/add_kind")
    x = g.node("Add", [x, place], "embeddings/add_position")
    x = g.layer_norm(x, width, "embeddings/norm", decomposed)
    mask = g.node("Cast", ["attention_mask"], "mask/cast", to=TensorProto.FLOAT)
    mask = g.node("Unsqueeze", [mask, g.constant([1, 2], "mask/axes", np.int64)], "mask/unsqueeze")
    mask = g.node("Sub", [g.constant(1.0, "mask/one"), mask], "mask/sub")
    mask = g.node("Mul", [mask, g.constant(_MASKED, "mask/value")], "mask/mul")
    split = g.constant([0, 0, heads, size], "heads", np.int64)
    joined = g.constant([0, 0, width], "joined", np.int64)
    for number in range(layers):
        name = f"layer{number}"
        parts = {}
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            made = g.node("Reshape", [g.dense(x, width, width, f"{name}/{part}"), split], f"{name}/{part}/split")
            parts[part] = g.node("Transpose", [made], f"{name}/{part}/transpose", perm=order)
        scores = g.node("MatMul", [parts["query"], parts["key"]], f"{name}/scores")
        scores = g.node("Div", [scores, g.constant(size**0.5, f"{name}/root")], f"{name}/scale")
        scores = g.node("Add", [scores, mask], f"{name}/mask")
        weights = g.node("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = g.node("MatMul", [weights, parts["value"]], f"{name}/mix")
        mixed = g.node("Transpose", [mixed], f"{name}/untranspose", perm=[0, 2, 1, 3])
        mixed = g.node("Reshape", [mixed, joined], f"{name}/join")
        attended = g.dense(mixed, width, width, f"{name}/output")
        x = g.layer_norm(g.node("Add", [attended, x], f"{name}/residual"), width, f"{name}/norm", decomposed)
        inner = g.gelu(g.dense(x, width, 4 * width, f"{name}/inner"), f"{name}/gelu")
        outer = g.dense(inner, 4 * width, width, f"{name}/outer")
        x = g.layer_norm(g.node("Add", [x, outer], f"{name}/residual2"), width, f"{name}/norm2", decomposed)
    first = g.node("Gather", [x, g.constant(0, "first", np.int64)], "pooled", axis=1)
    weight = g.normal("classifier/weight", classes, width, deviation=width**-0.5)
    inputs = [first, weight, g.normal("classifier/bias", classes, deviation=0.1)]
    g.nodes.append(helper.make_node("Gemm", inputs, ["logits"], name="classifier", transB=1))
    graph = helper.make_graph(
        g.nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        g.constants,
    )
    opset = 13 if decomposed else 17
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def sentences(samples: int, length: int = 16, words: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of `encoder`: token numbers, and masks whose first 4 to `length` places are 1."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, length + 1, samples)
    mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
    return {"input_ids": random.integers(0, words, (samples, length)) * mask, "attention_mask": mask}
