"""What is asked: the models, the requests of each client, and the answers that they must get."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IMAGE = (224, 224, 3)
COLUMNS = 1000


@dataclass(frozen=True)
class Question:
    """What a client asks again and again: one tensor, and the first output that must come back.

    Attributes:
        dtype: of the input, as the protocol names it.
        shared: the input lies in system shared memory; the answer comes in the message.
        tolerance: how far the answer's numbers may be from those expected, of their largest; 0: the same bytes.
    """

    model: str
    input: str
    dtype: str
    sent: Array
    expected: Array
    shared: bool = False
    tolerance: float = 0.0

    def answered_by(self, data: bytes, shape: Sequence[int]) -> bool:
        """Whether that is the answer."""
        if tuple(shape) != self.expected.shape:
            return False
        if not self.tolerance:
            return data == self.expected.tobytes()
        off = np.abs(np.frombuffer(data, self.expected.dtype).reshape(shape) - self.expected).max()
        return bool(off <= self.tolerance * np.abs(self.expected).max())


@dataclass(frozen=True)
class Case:
    """One kind of request.

    Attributes:
        rows: of each request.
        shared: the input lies in system shared memory; the answer comes in the message.
    """

    name: str
    model: str
    rows: int
    shared: bool = False

    def question(self, client: int) -> Question:
        """What one client asks; each client's input is another."""
        sent = self._input(client)
        return Question(self.model, "x", DTYPES[self.model][0], sent, self._answer(sent), self.shared)

    def _input(self, client: int) -> Array:
        """FP32 [rows, 1000], or UINT8 [rows, 224, 224, 3]."""
        random = np.random.default_rng(client)
        if self.model == "identity":
            return random.random((self.rows, COLUMNS), dtype=np.float32)
        return random.integers(0, 256, (self.rows, *IMAGE), dtype=np.uint8)

    def _answer(self, sent: Array) -> Array:
        """The same, or the sum of each row as INT32 [rows, 1]."""
        if self.model == "identity":
            return sent
        return sent.reshape(self.rows, -1).sum(axis=1, keepdims=True, dtype=np.int32)


CASES = (
    Case("4 KB", "identity", 1),
    Case("150 KB image", "sums", 1),
    Case("2.4 MB, 16 rows", "sums", 16),
    Case("2.4 MB by system shared memory", "sums", 16, shared=True),
)
# Of each model, input and output.
DTYPES = {"identity": ("FP32", "FP32"), "sums": ("UINT8", "INT32")}
MODELS = tuple(DTYPES)
MAX_BATCH = 16


def write_models(folder: Path) -> None:
    """Write `{name}/model.onnx` and the `engine.json` that makes it an engine of ours. Needs onnx."""
    import json

    import onnx
    from onnx import TensorProto, helper, numpy_helper

    flat = numpy_helper.from_array(np.array([0, -1], np.int64), "flat")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    models = {
        "identity": (
            [helper.make_node("Identity", ["x"], ["y"])],
            [],
            (TensorProto.FLOAT, [COLUMNS]),
            (TensorProto.FLOAT, [COLUMNS]),
        ),
        # INT32: float sums of 150,528 bytes are not exact.
        "sums": (
            [
                helper.make_node("Reshape", ["x", "flat"], ["r"]),
                helper.make_node("Cast", ["r"], ["c"], to=TensorProto.INT32),
                helper.make_node("ReduceSum", ["c", "axes"], ["y"], keepdims=1),
            ],
            [flat, axes],
            (TensorProto.UINT8, list(IMAGE)),
            (TensorProto.INT32, [1]),
        ),
    }
    for name, (nodes, constants, (in_type, in_shape), (out_type, out_shape)) in models.items():
        x = helper.make_tensor_value_info("x", in_type, ["n", *in_shape])
        y = helper.make_tensor_value_info("y", out_type, ["n", *out_shape])
        graph = helper.make_graph(nodes, name, [x], [y], initializer=constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8  # the newest that ONNX Runtime 1.23 reads
        (folder / name).mkdir(parents=True)
        onnx.save(model, str(folder / name / "model.onnx"))
        in_dtype, out_dtype = DTYPES[name]
        engine = {
            "backend": "onnxruntime",
            "inputs": [{"name": "x", "dtype": in_dtype, "shape": [-1, *in_shape]}],
            "outputs": [{"name": "y", "dtype": out_dtype, "shape": [-1, *out_shape]}],
            "batched": True,
            "max_batch_size": MAX_BATCH,
            "payload": "model.onnx",
            "device": {"kind": "cpu"},
        }
        (folder / name / "engine.json").write_text(json.dumps(engine))


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
