"""Mutates ONNX files and imports each: `python tests/worker/fuzz_onnx.py 10000 [seed]` prints what came of them.

A mutation is imported, or refused with a status that blames the file. Anything else is a fault of ours and is kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    HERE = Path(__file__).parent
    sys.path[:0] = [str(HERE), str(HERE.parent.parent / "worker")]

import onnx
import onnxruntime  # noqa: F401 (once, not in each import's child)
from enginehouse_worker.conversion.onnx_import import import_onnx
from enginehouse_worker.errors import WorkerError
from networks import Network, residual_classifier
from onnx import helper
from transformer import encoder

# What may come of a damaged file.
BLAME = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")


def originals() -> list[bytes]:
    """Models that the mutations begin with: convolutions, a transformer, subgraphs."""
    net = Network((4,))
    then = helper.make_graph(
        [helper.make_node("Neg", ["input"], ["negative"])],
        "then",
        [],
        [helper.make_tensor_value_info("negative", onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["input"], ["positive"])],
        "else",
        [],
        [helper.make_tensor_value_info("positive", onnx.TensorProto.FLOAT, None)],
    )
    chosen = net.node("If", [net.constant(True, np.bool_)], then_branch=then, else_branch=other)
    choice = net.model({net.node("Relu", [chosen]): ["batch", 4]})
    return [
        residual_classifier(size=8).SerializeToString(),
        encoder(layers=1, width=8, heads=2, words=10, longest=16, classes=2).SerializeToString(),
        choice.SerializeToString(),
    ]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to eight random changes: bits, bytes, cuts, repetitions, or fields of the model set to what does not fit."""
    if random.random() < 0.4:
        return _mutated_fields(data, random)
    value = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        at = int(random.integers(len(value))) if value else 0
        kind = random.integers(6)
        if kind == 0 and value:
            value[at] ^= 1 << int(random.integers(8))
        elif kind == 1 and value:
            value[at] = int(random.integers(256))
        elif kind == 2:
            del value[at : at + int(random.integers(1, 64))]
        elif kind == 3:
            value[at:at] = random.bytes(int(random.integers(1, 16)))
        elif kind == 4:
            value[at:at] = value[at : at + int(random.integers(1, 64))]
        elif random.random() < 0.1:
            del value[at:]
    return bytes(value)


def _mutated_fields(data: bytes, random: np.random.Generator) -> bytes:
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    sizes = (0, 1, -1, 2, 7, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63))
    for _ in range(int(random.integers(1, 4))):
        node = graph.node[int(random.integers(len(graph.node)))]
        tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
        info = [*graph.input, *graph.output][int(random.integers(len(graph.input) + len(graph.output)))]
        size = int(random.choice(np.array(sizes, np.int64)))
        kind = random.integers(9)
        if kind == 0 and node.input:
            names = [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output]
            node.input[int(random.integers(len(node.input)))] = names[int(random.integers(len(names)))]
        elif kind == 1:
            node.op_type = str(random.choice(["Conv", "Reshape", "Loop", "If", "Resize", "Tile", "LSTM", "X"]))
        elif kind == 2 and tensor.dims:
            tensor.dims[int(random.integers(len(tensor.dims)))] = size
        elif kind == 3:
            tensor.data_type = int(random.integers(30))
        elif kind == 4 and len(info.type.tensor_type.shape.dim):
            dims = info.type.tensor_type.shape.dim
            dims[int(random.integers(len(dims)))].dim_value = size
        elif kind == 5:
            info.type.tensor_type.elem_type = int(random.integers(30))
        elif kind == 6 and node.attribute:
            attribute = node.attribute[int(random.integers(len(node.attribute)))]
            attribute.i = size
            if attribute.ints:
                attribute.ints[0] = size
        elif kind == 7:
            del graph.node[int(random.integers(len(graph.node)))]
            if not graph.node:
                break
        elif tensor.raw_data:
            changed = bytearray(tensor.raw_data)
            at = int(random.integers(len(changed)))
            changed[at : at + 8] = size.to_bytes(8, "little", signed=True)[: len(changed) - at]
            tensor.raw_data = bytes(changed)
    return model.SerializeToString()


def outcome(data: bytes, directory: Path) -> str:
    """What came of importing a file: "imported", a status, or what was raised that should not be."""
    path = directory / "model.onnx"
    path.write_bytes(data)
    try:
        import_onnx(path, directory, lambda fraction, message: None)
    except WorkerError as error:
        crashed = " ended by SIG" in error.message or " ended without" in error.message
        return f"{error.code} (libraries crashed)" if crashed else error.code
    except Exception as error:
        return f"fault {type(error).__name__}: {error}"
    return "imported"


def main(count: int, seed: int = 0) -> int:
    random = np.random.default_rng(seed)
    models = originals()
    counts: Counter[str] = Counter()
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        for number in range(count):
            data = mutated(models[number % len(models)], random)
            found = outcome(data, Path(directory))
            counts[found] += 1
            if found.split(" ")[0] not in ("imported", *BLAME):
                faults += 1
                kept = Path(tempfile.gettempdir()) / f"onnx-fault-{seed}-{number}.onnx"
                kept.write_bytes(data)
                print(f"{kept}: {found}", flush=True)
    for found, times in counts.most_common():
        print(f"{times:6} {found}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
