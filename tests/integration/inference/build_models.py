"""Writes small ONNX Runtime engines: build_models.py DIRECTORY, by the Python of a worker environment that has onnx."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PROTOCOL = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
    TensorProto.STRING: "BYTES",
}
Tensor = tuple[str, int, Sequence[Any]]


def write(
    directory: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    batched: bool = True,
    max_batch_size: int = 8,
    constants: Sequence[Any] = (),
) -> None:
    """An engine directory; a dimension that is a string is dynamic."""
    directory.mkdir(parents=True)
    graph = helper.make_graph(
        list(nodes),
        directory.name,
        [helper.make_tensor_value_info(n, t, list(s)) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, list(s)) for n, t, s in outputs],
        initializer=list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(directory / "model.onnx"))
    (directory / "engine.json").write_text(
        json.dumps(
            {
                "backend": "onnxruntime",
                "backend_version": "test",
                "precision": "FP32",
                "inputs": [_spec(t) for t in inputs],
                "outputs": [_spec(t) for t in outputs],
                "batched": batched,
                "max_batch_size": max_batch_size if batched else 0,
                "payload": "model.onnx",
                "device": {"kind": "cpu", "product": "test"},
            }
        )
    )


def _spec(tensor: Tensor) -> dict[str, Any]:
    name, dtype, shape = tensor
    return {"name": name, "dtype": PROTOCOL[dtype], "shape": [-1 if isinstance(d, str) else d for d in shape]}


def main(root: Path) -> None:
    float32, string = TensorProto.FLOAT, TensorProto.STRING
    node = helper.make_node
    write(
        root / "double",
        [node("Add", ["x", "x"], ["y"])],
        [("x", float32, ["b", 4])],
        [("y", float32, ["b", 4])],
    )
    write(
        root / "triple",
        [node("Add", ["x", "x"], ["xx"]), node("Add", ["xx", "x"], ["y"])],
        [("x", float32, ["b", 4])],
        [("y", float32, ["b", 4])],
    )
    write(
        root / "identity",
        [node("Identity", ["x"], ["y"])],
        [("x", float32, ["b", "n"])],
        [("y", float32, ["b", "n"])],
        max_batch_size=64,
    )
    write(
        root / "addsub",
        [node("Add", ["a", "b"], ["sum"]), node("Sub", ["a", "b"], ["difference"])],
        [("a", TensorProto.INT32, ["n", 3]), ("b", TensorProto.INT32, ["n", 3])],
        [("sum", TensorProto.INT32, ["n", 3]), ("difference", TensorProto.INT32, ["n", 3])],
    )
    write(root / "text", [node("Identity", ["s"], ["t"])], [("s", string, ["b", 2])], [("t", string, ["b", 2])])
    half = TensorProto.FLOAT16
    write(root / "half", [node("Identity", ["x"], ["y"])], [("x", half, ["b", 2, 3])], [("y", half, ["b", 2, 3])])
    write(
        root / "scalar",
        [node("Add", ["x", "y"], ["z"])],
        [("x", float32, []), ("y", float32, ["n"])],
        [("z", float32, ["n"])],
        batched=False,
    )
    # A loop that the input's value makes as long as a test needs.
    body = helper.make_graph(
        [
            node("Identity", ["going"], ["go_on"]),
            node("Sin", ["state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", float32, ["b", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", float32, ["b", 1]),
        ],
    )
    write(
        root / "slow",
        [
            node("ReduceMax", ["steps"], ["most"], keepdims=0),
            node("Cast", ["steps"], ["start"], to=float32),
            node("Loop", ["most", "yes", "start"], ["y"], body=body),
        ],
        [("steps", TensorProto.INT64, ["b", 1])],
        [("y", float32, ["b", 1])],
        max_batch_size=4,
        constants=[numpy_helper.from_array(np.array(True), "yes")],
    )
    # Takes long to load: some thousand nodes that differ.
    count = 3000
    write(
        root / "large",
        [node("Add", [f"x{n}" if n else "x", f"c{n}"], [f"x{n + 1}" if n + 1 < count else "y"]) for n in range(count)],
        [("x", float32, ["b", 4])],
        [("y", float32, ["b", 4])],
        constants=[numpy_helper.from_array(np.full(4, n, np.float32), f"c{n}") for n in range(count)],
    )
    broken = root / "broken"
    write(broken, [node("Identity", ["x"], ["y"])], [("x", float32, ["b"])], [("y", float32, ["b"])])
    (broken / "model.onnx").write_bytes(b"this is no model")
    alien = root / "alien"
    write(alien, [node("Identity", ["x"], ["y"])], [("x", float32, ["b"])], [("y", float32, ["b"])])
    manifest = json.loads((alien / "engine.json").read_text())
    (alien / "engine.json").write_text(json.dumps({**manifest, "backend": "abacus"}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
