"""Writes a small network as the freeze stage does: `python write_frozen.py FOLDER`, by a Python that has TensorFlow.

`image` FP32 [batch, 32, 32, 3] to `logits` [batch, 10], and to `digammas` [batch, 10], by an op that TensorRT lacks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import tensorflow as tf


def main(folder: Path) -> None:
    random = np.random.default_rng(0)

    def weights(*shape: int) -> tf.Tensor:
        return tf.constant(random.standard_normal(shape, np.float32) * np.float32(np.prod(shape[:-1]) ** -0.5))

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 32, 32, 3), name="image")
        first = tf.nn.relu(tf.nn.conv2d(image, weights(3, 3, 3, 32), 1, "SAME"))
        second = tf.nn.relu(tf.nn.conv2d(first, weights(3, 3, 32, 32), 2, "SAME")) + first[:, ::2, ::2]
        pooled = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(second, weights(3, 3, 32, 64), 2, "SAME")), (1, 2))
        logits = tf.identity(tf.matmul(pooled, weights(64, 10)), name="logits")
        tf.identity(tf.math.digamma(tf.abs(logits) + 1.0), name="digammas")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    outputs = [{"name": name, "dtype": "FP32", "shape": [-1, 10]} for name in ("logits", "digammas")]
    inputs = [{"name": "image", "dtype": "FP32", "shape": [-1, 32, 32, 3]}]
    (folder / "signature.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs, "batched": True}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
