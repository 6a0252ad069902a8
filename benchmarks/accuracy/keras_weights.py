"""Writes trained weights as Keras's weights file, for the zoo's architecture of the same name.

    .venv/workers/tensorflow/bin/python benchmarks/accuracy/keras_weights.py /tmp/accuracy/resnet_v1_50
    enginehouse models zoo resnet_v1_50 --classes 10 --weights /tmp/accuracy/resnet_v1_50/keras.weights.h5

Reads `weights.npz`, which `train.py` wrote, and compares outputs with PyTorch's on the few images of `samples.npz`. Run
it with the worker environment of TensorFlow (Keras 3).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "worker")]

# Of float32 logits, as a share of the largest: both frameworks add in another order.
TOLERANCE = 1e-3


def assign(model: Any, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Give every variable of a Keras model its values, by its path.

    Raises:
        ValueError: a variable has no values, values no variable, or a shape does not fit.
    """
    variables = {variable.path: variable for variable in model.variables}
    absent, unknown = sorted(set(variables) - set(arrays)), sorted(set(arrays) - set(variables))
    if absent or unknown:
        raise ValueError(f"no values for {absent[:3]}, no variables for {unknown[:3]} of {model.name}")
    for path, variable in variables.items():
        if tuple(variable.shape) != arrays[path].shape:
            raise ValueError(f"{path} has shape {tuple(variable.shape)}, its values {arrays[path].shape}")
        variable.assign(arrays[path])


def agreement(model: Any, samples: Mapping[str, npt.NDArray[np.float32]]) -> float:
    """The largest difference of logits from PyTorch's, over the largest logit; images are channels first."""
    found = np.asarray(model(samples["images"].transpose(0, 2, 3, 1), training=False))
    return float(np.abs(found - samples["logits"]).max() / np.abs(samples["logits"]).max())


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="of train.py, called like the network")
    arguments = cli.parse_args()
    from enginehouse_worker.zoo import build
    from enginehouse_worker.zoo.entries import architecture

    folder: Path = arguments.folder
    with np.load(folder / "weights.npz") as file:
        arrays = dict(file)
    model = build(architecture(folder.resolve().name), len(arrays["predictions/bias"]))
    assign(model, arrays)
    with np.load(folder / "samples.npz") as file:
        off = agreement(model, dict(file))
    if off > TOLERANCE:
        raise SystemExit(f"Keras's logits differ from PyTorch's by {off:.1e} of the largest: the weights are mixed up")
    model.save_weights(folder / "keras.weights.h5")
    print(f"{folder / 'keras.weights.h5'}: logits differ from PyTorch's by {off:.1e} of the largest")


if __name__ == "__main__":
    main()
