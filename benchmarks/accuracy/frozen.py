"""Puts trained weights into the frozen graph of `benchmarks/graphs`: what the TensorFlow modes are built from.

    python benchmarks/accuracy/frozen.py /tmp/accuracy/resnet_v1_50

Needs TensorFlow of any version that reads the graph, 2.14 with TF-TRT among them, and no Keras. Writes `frozen/` as the
freeze stage does, from the `weights.npz` of `train.py`, and compares its outputs with PyTorch's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import struct
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

from tf_trt.graphs import graph_path  # noqa: E402

TOLERANCE = 1e-3
_HEADER = struct.Struct("<I")
# How Keras's layers read their variables in a frozen graph. A batch norm reads mean, variance, then scale where it has
# one, then offset.
_ROLES = {
    "convolution": "kernel",
    "Reshape": "bias",
    "BiasAdd": "bias",
    "Cast": "moving_mean",
    "Cast_1": "moving_variance",
}
_CONSTANT = re.compile(r"(?P<layer>[^/]+)/(?P<read>[^/]+)/ReadVariableOp/resource(?P<second>_2)?")


def variable(constant: str, arrays: Collection[str], constants: Collection[str]) -> str:
    """Keras's name of the variable that a frozen constant was; empty for other constants.

    TensorFlow calls the first layer of a kind, `conv2d`, `conv2d_1` when the name is taken, and then the constants of
    the real `conv2d_1` end in `_2`.
    """
    found = _CONSTANT.fullmatch(constant)
    if found is None:
        return ""
    layer, read = found["layer"], found["read"]
    if f"{constant}_2" in constants:
        layer = layer.removesuffix("_1")
    if layer == "predictions":
        return f"{layer}/{'kernel' if read == 'Cast' else 'bias'}"
    if read in ("Cast_2", "Cast_3"):
        return f"{layer}/{'gamma' if read == 'Cast_2' and f'{layer}/gamma' in arrays else 'beta'}"
    return f"{layer}/{_ROLES[read]}" if read in _ROLES else ""


def fill(source: Path, arrays: Mapping[str, npt.NDArray[np.float32]], target: Path) -> None:
    """Write `frozen.pb` and `signature.json` of a graph that `tf_trt/graphs.py` stripped, with these weights.

    Raises:
        ValueError: a constant has no values, values have no constant, or a shape but the classifier's does not fit.
    """
    import tensorflow as tf

    data = gzip.decompress(source.read_bytes())
    (size,) = _HEADER.unpack_from(data)
    header = json.loads(data[_HEADER.size : _HEADER.size + size])
    graph = tf.compat.v1.GraphDef.FromString(data[_HEADER.size + size :])
    used: set[str] = set()
    without: list[str] = []
    constants = {node.name for node in graph.node if node.op == "Const"}
    for node in graph.node:
        name = variable(node.name, arrays, constants) if node.op == "Const" else ""
        if name in arrays:
            expected = header["constants"].get(node.name, {}).get("shape")
            if expected is not None and expected != list(arrays[name].shape) and not name.startswith("predictions/"):
                raise ValueError(f"{node.name} has shape {expected}, {name} {arrays[name].shape}")
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(arrays[name]))
            used.add(name)
        elif node.name in header["constants"]:
            without.append(node.name)
        # Shapes of 1,000 classes that TensorFlow noted; it infers them again.
        node.attr.pop("_output_shapes", None)
    if without or set(arrays) - used:
        raise ValueError(
            f"{source.name}: no values for {without[:3]}, no constants for {sorted(set(arrays) - used)[:3]}"
        )
    signature = header["signature"]
    signature["outputs"][0]["shape"][-1] = len(arrays["predictions/bias"])
    target.mkdir(parents=True, exist_ok=True)
    (target / "frozen.pb").write_bytes(graph.SerializeToString(True))
    (target / "signature.json").write_text(json.dumps(signature))


def outputs(folder: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What TensorFlow makes of images (n, channels, height, width)."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString((folder / "frozen.pb").read_bytes())
    signature = json.loads((folder / "signature.json").read_text())
    names = [signature[kind][0]["name"] for kind in ("inputs", "outputs")]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        fed, wanted = (f"{name}:0" for name in names)
        return np.asarray(session.run(wanted, {fed: images.transpose(0, 2, 3, 1)}))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="of train.py, called like the network")
    folder: Path = cli.parse_args().folder
    with np.load(folder / "weights.npz") as file:
        fill(graph_path(folder.resolve().name), dict(file), folder / "frozen")
    with np.load(folder / "samples.npz") as file:
        found, expected = outputs(folder / "frozen", file["images"]), file["logits"]
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if off > TOLERANCE:
        raise SystemExit(f"TensorFlow's logits differ from PyTorch's by {off:.1e} of the largest: weights are mixed up")
    print(f"{folder / 'frozen'}: logits differ from PyTorch's by {off:.1e} of the largest")


if __name__ == "__main__":
    main()
