"""Writes models for the tests here, by the Python of an environment that has onnx.

python write_models.py small FOLDER          a small residual network, `input` FP32 [batch, 3, 32, 32]
python write_models.py large FOLDER BYTES    one whose weights take so many bytes
python write_models.py zoo GRAPH FOLDER      a network of benchmarks/graphs, filled from its seeds
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "worker"), str(ROOT / "benchmarks")]


def large(size: int) -> onnx.ModelProto:
    """A matrix of `size` bytes between two small ones: FP32 [batch, 64] to [batch, 64]."""
    wide = max(64, round((size / 4) ** 0.5))
    names = ("into", "wide", "out")
    shapes = ((64, wide), (wide, wide), (wide, 64))
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) / np.float32(wide), name)
        for name, shape in zip(names, shapes, strict=True)
    ]
    nodes = [
        helper.make_node("MatMul", [source, name], [target])
        for source, name, target in zip(("input", "a", "b"), names, ("a", "b", "result"), strict=True)
    ]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 64]) for n in ("input", "result")]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind == "small":
        from networks import residual_classifier

        model = residual_classifier(size=32)
    elif kind == "large":
        model = large(int(rest[1]))
    else:
        from weightless import fill

        model = fill(onnx.load(rest.pop(0)))
    folder = Path(rest[0])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))


if __name__ == "__main__":
    main(sys.argv[1:])
