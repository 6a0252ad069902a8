"""ONNX graphs without their weights, so that a benchmark's model is a few kilobytes in the repository.

    python benchmarks/weightless.py strip model.onnx graph.onnx
    python benchmarks/weightless.py fill graph.onnx model.onnx

`strip` replaces every large float tensor by its shape, mean and standard deviation; `fill` draws it again from a normal
distribution of those, with a seed that is the digest of its name, so that a graph always fills to the same bytes. Speed
does not depend on the values; accuracy means nothing afterwards. Needs onnx and NumPy: run it with a worker
environment's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LARGE = 1024  # elements
KEY = "enginehouse.weightless"


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without large float32 initializers; what they were is in its metadata."""
    removed = {}
    kept = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= LARGE:
            removed[tensor.name] = {
                "shape": list(values.shape),
                "mean": float(values.mean()),
                "deviation": float(values.std()),
            }
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.metadata_props.add(key=KEY, value=json.dumps(removed, sort_keys=True))
    return model


def fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """The inverse of `strip` but for the values.

    Raises:
        ValueError: the graph was not stripped by this module.
    """
    entries = [p for p in model.metadata_props if p.key == KEY]
    if not entries:
        raise ValueError(f"the graph has no {KEY!r} metadata: expected one that `weightless.py strip` wrote")
    for name, entry in json.loads(entries[0].value).items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        values = np.random.default_rng(seed).standard_normal(entry["shape"], dtype=np.float32)
        values = values * np.float32(entry["deviation"]) + np.float32(entry["mean"])
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.metadata_props.remove(entries[0])
    return model


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("command", choices=["strip", "fill"])
    cli.add_argument("source", type=Path)
    cli.add_argument("target", type=Path)
    arguments = cli.parse_args()
    model = onnx.load(arguments.source)
    onnx.save((strip if arguments.command == "strip" else fill)(model), arguments.target)


if __name__ == "__main__":
    main()
