"""Small models in every format, written by the worker environments' own tools and kept in pytest's cache.

All of them name the colour of 16x16 images that stand out by less than a channel's noise: the scores are right only
for pixels that were normalized as PREPROCESSING says.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

import pytest

from enginehouse import Preprocessing
from enginehouse.workers.environments import WorkerEnvironments

SIZE = 16
MEAN = (60.0, 110.0, 180.0)
DEVIATION = 20.0
PREPROCESSING = Preprocessing(mean=MEAN, deviation=(DEVIATION,), central_fraction=1.0)
CLASSES = ("blue", "green", "red")

# `colours.onnx` takes channels first. In `outlier.onnx` one channel between two convolutions is a thousand times larger
# than it needs to be and is scaled down again after: rounding that tensor to 8 bits loses all other channels.
ONNX = """
import sys
from pathlib import Path
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

out = Path(sys.argv[1])


def model(outlier=1.0, nan=False):
    random = np.random.default_rng(0)
    conv = [0.05 * random.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (8, 8, 3, 3))]
    for channel in range(3):
        conv[0][channel, channel, 1, 1] += 1.0
        conv[1][channel, channel, 1, 1] += 1.0
    third = 0.05 * random.standard_normal((8, 8, 3, 3)).astype(np.float32)
    for channel in range(8):
        third[channel, channel, 1, 1] += 1.0
    conv[0][7] *= outlier
    conv[1][:, 7] /= outlier
    dense = 0.02 * random.standard_normal((3, 8)).astype(np.float32)
    for channel in range(3):
        dense[2 - channel, channel] += 4.0  # classes by name: blue, green, red
    if nan:
        third[0, 0, 0, 0] = np.nan
    weights = dict(first=conv[0], second=conv[1], third=third, dense=dense, bias=np.zeros(3, np.float32))
    nodes, value = [], "image"
    for name in ("first", "second", "third"):
        nodes += [
            helper.make_node("Conv", [value, name], [f"{name}_out"], name=f"{name}/conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"], name=f"{name}/relu"),
        ]
        value = f"{name}_relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["scores"], name="dense/gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


onnx.save(model(), out / "colours.onnx")
onnx.save(model(outlier=1000.0), out / "outlier.onnx")
onnx.save(model(nan=True), out / "nan.onnx")
(out / "external").mkdir()
onnx.save(
    model(), out / "external" / "colours.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
)
escaping = onnx.load(out / "external" / "colours.onnx", load_external_data=False)
for tensor in escaping.graph.initializer:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = "../../../secret.bin"
(out / "escaping.onnx").write_bytes(escaping.SerializeToString())
unknown = model()
unknown.graph.node[1].op_type = "NoSuchOperator"
(out / "unknown.onnx").write_bytes(unknown.SerializeToString())
"""

TENSORFLOW = """
import sys
from pathlib import Path
import numpy as np
import keras
import tensorflow as tf

out = Path(sys.argv[1])
keras.utils.set_random_seed(0)


def model(*more):
    layers = [keras.Input((16, 16, 3), name="image"), *more,
              keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
              keras.layers.BatchNormalization(name="norm"),
              keras.layers.GlobalAveragePooling2D(name="pool"), keras.layers.Dense(3, name="scores")]
    made = keras.Sequential(layers)
    first, dense = made.get_layer("first"), made.get_layer("scores")
    weights = 0.05 * np.random.default_rng(0).standard_normal((3, 3, 3, 8)).astype(np.float32)
    for channel in range(3):
        weights[1, 1, channel, channel] += 1.0
    first.set_weights([weights, np.zeros(8, np.float32)])
    last = np.zeros((8, 3), np.float32)
    for channel in range(3):
        last[channel, 2 - channel] = 4.0
    dense.set_weights([last, np.zeros(3, np.float32)])
    return made


net = model()
net.save(out / "colours.keras")
net.save(out / "colours.h5")
net.export(out / "saved_model", verbose=False)
model(keras.layers.Lambda(lambda x: x * 1.0, output_shape=(16, 16, 3), name="custom")).save(out / "lambda.keras")

weights, bias = net.get_layer("first").get_weights()
dense = net.get_layer("scores").get_weights()[0]
with tf.Graph().as_default() as graph:
    image = tf.compat.v1.placeholder(tf.float32, [None, 16, 16, 3], name="image")
    kernel = tf.compat.v1.get_variable("kernel", initializer=weights)
    value = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(image, kernel, 1, "SAME"), bias))
    scores = tf.matmul(tf.reduce_mean(value, [1, 2]), tf.compat.v1.get_variable("dense", initializer=dense))
    scores = tf.identity(scores, name="scores")
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(out / "saved_model_v1"), {"image": image}, {"scores": scores})
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["scores"])
(out / "frozen.pb").write_bytes(frozen.SerializeToString())
"""


def made(config: pytest.Config, environment: str, script: str) -> Path:
    """The folder that a script fills, run by a worker environment's Python; made again when it or a version changes."""
    constraints = Path(__file__).parents[3] / "constraints" / f"{environment}.txt"
    key = hashlib.sha256(script.encode() + constraints.read_bytes()).hexdigest()[:16]
    assert config.cache is not None
    path = config.cache.mkdir("e2e-models") / key
    if not path.exists():
        python = str(WorkerEnvironments.discover().environment(environment).python)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            work = Path(folder) / "made"
            work.mkdir()
            subprocess.run([python, "-c", script, str(work)], check=True, capture_output=True, timeout=200)
            try:
                work.rename(path)
            except OSError:  # another process of the session was first
                assert path.is_dir(), path
    return path
