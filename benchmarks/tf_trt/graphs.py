"""Frozen TensorFlow graphs without their weights, so that a network is some kilobytes in the repository.

    python benchmarks/tf_trt/graphs.py strip FROZEN_FOLDER benchmarks/graphs/NAME.graphdef.gz
    python benchmarks/tf_trt/graphs.py fill NAME FOLDER

`strip` takes what the freeze stage wrote. It replaces every large float constant by its shape, mean, deviation and
range; `fill` draws it again from a normal distribution of those, cut to the range (a variance stays positive), with a
seed that is the digest of its name. Speed does not depend on the values; accuracy means nothing afterwards. Needs
TensorFlow, of any version that reads the graph.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = ROOT / "benchmarks" / "graphs"
LARGE = 64  # elements
_HEADER = struct.Struct("<I")


def graph_path(name: str) -> Path:
    """Where the repository keeps a network's graph."""
    return GRAPHS / f"{name}.graphdef.gz"


def strip(folder: Path, target: Path) -> None:
    """Write a graph without weights: a JSON header (the signature, and what the constants were), then the GraphDef."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString((folder / "frozen.pb").read_bytes())
    removed: dict[str, Any] = {}
    for node in graph.node:
        if node.op != "Const":
            continue
        values = tf.make_ndarray(node.attr["value"].tensor)
        if values.dtype != np.float32 or values.size < LARGE:
            continue
        facts = {"mean": values.mean(), "deviation": values.std(), "least": values.min(), "most": values.max()}
        removed[node.name] = {"shape": list(values.shape), **{name: float(value) for name, value in facts.items()}}
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.zeros((), np.float32)))
    header = json.dumps(
        {"signature": json.loads((folder / "signature.json").read_text()), "constants": removed}, sort_keys=True
    ).encode()
    # No time of writing: the same graph gives the same bytes.
    target.write_bytes(gzip.compress(_HEADER.pack(len(header)) + header + graph.SerializeToString(True), mtime=0))


def fill(source: Path, folder: Path) -> None:
    """Write `frozen.pb` and `signature.json`, as the freeze stage does, of a graph that `strip` wrote."""
    import tensorflow as tf

    data = gzip.decompress(source.read_bytes())
    (size,) = _HEADER.unpack_from(data)
    header = json.loads(data[_HEADER.size : _HEADER.size + size])
    graph = tf.compat.v1.GraphDef.FromString(data[_HEADER.size + size :])
    for node in graph.node:
        if (entry := header["constants"].get(node.name)) is not None:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(drawn(node.name, entry)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frozen.pb").write_bytes(graph.SerializeToString(True))
    (folder / "signature.json").write_text(json.dumps(header["signature"]))


def drawn(name: str, entry: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A constant's values: the same for the same name and facts."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(entry["shape"], dtype=np.float32)
    values = values * np.float32(entry["deviation"]) + np.float32(entry["mean"])
    return np.clip(values, np.float32(entry["least"]), np.float32(entry["most"]))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("command", choices=["strip", "fill"])
    cli.add_argument("source")
    cli.add_argument("target", type=Path)
    arguments = cli.parse_args()
    if arguments.command == "strip":
        strip(Path(arguments.source), arguments.target)
    else:
        fill(graph_path(arguments.source), arguments.target)


if __name__ == "__main__":
    sys.exit(main())
