"""Small models in every format that the freeze stage takes, and a way to freeze them in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from enginehouse_worker.freezing import formats
from enginehouse_worker.stages.context import StageContext
from enginehouse_worker.stages.freeze import freeze_file
from enginehouse_worker.stages.params import Params
from keras import layers

v1 = tf.compat.v1


def small_model(**input_options: Any) -> Any:
    """Convolution, batch norm, dropout and a classifier."""
    keras.utils.set_random_seed(0)
    image = keras.Input(**{"shape": (8, 8, 3), "name": "image", **input_options})
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x))


def packed(directory: Path, kind: str = "zip", *, wrapped: bool = False) -> Path:
    """An archive of a SavedModel's directory, its content at the root or in one folder."""
    root, base = (directory.parent, directory.name) if wrapped else (directory, ".")
    return Path(shutil.make_archive(str(directory) + "_packed", kind, root, base))


def constant_graph(path: Path, batch: int | None = None, weight: float = 1.0) -> Path:
    """A frozen GraphDef: softmax of relu(x w1) w2, with a Print and an Identity in the way."""
    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [batch, 4], name="x")
        kernel = random.standard_normal((4, 6)).astype(np.float32)
        kernel[0, 0] = weight
        first = tf.constant(kernel, name="first/weights")
        second = tf.constant(random.standard_normal((6, 3)).astype(np.float32), name="second/weights")
        hidden = tf.nn.relu(tf.matmul(x, first, name="first/product"), name="first/relu")
        hidden = tf.identity(v1.Print(hidden, [hidden]), name="passed")
        tf.nn.softmax(tf.matmul(hidden, second), name="head/probabilities")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


class Frozen:
    """What the stage wrote, and a way to run it."""

    def __init__(self, facts: dict[str, Any], output: Path) -> None:
        self.facts = facts
        self.signature = json.loads((output / "signature.json").read_text())
        self.graph = v1.GraphDef()
        self.graph.ParseFromString((output / "frozen.pb").read_bytes())
        self.operators = {node.op for node in self.graph.node}

    def __call__(self, value: Any) -> Any:
        with tf.Graph().as_default() as graph:
            tf.graph_util.import_graph_def(self.graph, name="")
            with v1.Session(graph=graph) as session:
                outputs = [f"{spec['name']}:0" for spec in self.signature["outputs"]]
                return session.run(outputs, {f"{self.signature['inputs'][0]['name']}:0": value})[0]


def freeze(path: Path, output: Path, **params: Any) -> Frozen:
    """The stage's work on a file, in this process."""
    output.mkdir()
    ctx = StageContext("freeze", {}, output, params, lambda fraction, message: None)
    read = Params(params, ("format", "import", "allow_unsafe"), "freeze")
    return Frozen(freeze_file(ctx, read, path, str(params.get("format") or formats.format_of(path))), output)
