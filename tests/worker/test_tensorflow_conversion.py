"""convert: GraphDefs become clean ONNX graphs that compute the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from enginehouse_worker.backends.base import Signature
from enginehouse_worker.conversion.tensorflow import convert
from enginehouse_worker.conversion.weights import strip_weights
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.freezing.freeze import freeze
from enginehouse_worker.freezing.frozen_file import write_graph
from enginehouse_worker.graphs.editing import EditableGraph
from enginehouse_worker.zoo.entries import ENTRIES
from keras import layers
from onnx.reference import ReferenceEvaluator
from stages import succeed

pytestmark = pytest.mark.tensorflow
# L2 of the difference over L2 of the reference.
TOLERANCE = 1e-4


def silent(fraction: float, message: str) -> None:
    """No progress."""


def random_weights(model: Any) -> Any:
    """Every weight positive and different: biases and batch norms as training leaves them, not as they begin."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([_values(w.shape, random) for w in layer.get_weights()])
    return model


def _values(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return (random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def flattened() -> Any:
    """Like VGG: a Flatten of more than one pixel before dense layers."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(16, activation="relu", name="fc1")(x)
    return random_weights(keras.Model(image, layers.Dense(10, name="logits")(x)))


def pre_activated() -> Any:
    """Like ResNet v2: batch norms before their convolutions, and a padding before a pooling of negative values."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = layers.MaxPooling2D(3, 2, name="pool")(layers.ZeroPadding2D(1, name="pool_pad")(x))
    y = layers.ReLU(name="pre_relu")(layers.BatchNormalization(name="pre_bn", epsilon=1.001e-5)(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="body")(y)
    y = layers.ReLU(name="body_relu")(layers.BatchNormalization(name="body_bn")(y))
    y = layers.Conv2D(8, 1, name="out")(y)
    x = layers.ReLU(name="post_relu")(layers.BatchNormalization(name="post_bn")(layers.Add(name="add")([x, y])))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return random_weights(keras.Model(image, layers.Dense(10, name="logits")(x)))


def branched() -> Any:
    """Like Inception: branches of convolutions without bias, an average pooling, a concatenation; and one depthwise."""
    image = keras.Input((16, 16, 3), name="image")
    branches = []
    for number, shape in enumerate([(1, 1), (1, 3), (3, 3)]):
        x = layers.Conv2D(8, shape, padding="same", use_bias=False, name=f"conv{number}")(image)
        branches.append(
            layers.ReLU(name=f"relu{number}")(layers.BatchNormalization(scale=False, name=f"bn{number}")(x))
        )
    branches.append(layers.AveragePooling2D(3, 1, padding="same", name="pool")(image))
    x = layers.Concatenate(name="mixed")(branches)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D(name="mean")(x))
    return random_weights(keras.Model(image, layers.Dense(10, name="logits")(x)))


def converted(model: Any, tmp_path: Path, *, channels_first: bool) -> tuple[EditableGraph, Signature]:
    frozen = freeze(model)
    path = tmp_path / "frozen.pb"
    write_graph(path, frozen.graph, frozen.weights)
    return convert(path, frozen.signature, channels_first=channels_first, opset=17, progress=silent)


def error(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("make", [flattened, pre_activated, branched])
def test_graphs_are_clean_and_exact(make: Any, channels_first: bool, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    graph, signature = converted(model, tmp_path, channels_first=channels_first)
    onnx.checker.check_model(graph.to_model(), full_check=True)
    counts = Counter(node.op_type for node in graph.nodes)
    assert counts["Transpose"] == (0 if channels_first else 1)
    assert counts["BatchNormalization"] == (2 if make is pre_activated else 0)
    left = {"Mul", "Sub", "MatMul", "Shape", "Slice", "Gather", "Cast", "Identity", "Dropout"} & set(counts)
    assert not left
    assert counts["Pad"] == (1 if make is pre_activated else 0)
    assert counts["Reshape"] + counts["Flatten"] == (1 if make is flattened else 0)
    assert signature.batched
    assert {"logits/weight", "logits/bias"} <= set(graph.constants)
    layer_names = {layer.name for layer in model.layers}
    assert {node.name.split("/")[0] for node in graph.nodes} - {node.name for node in graph.nodes} <= layer_names | {
        "image"
    }
    images = np.random.default_rng(1).standard_normal((5, *model.input_shape[1:])).astype(np.float32)
    feed = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_first else images
    found = ReferenceEvaluator(graph.to_model()).run(None, {"image": feed})[0]
    assert error(found, np.asarray(model(images, training=False))) < TOLERANCE


def test_weights_stay_out_of_the_conversion(tmp_path: Path) -> None:
    frozen = freeze(flattened())
    path = tmp_path / "frozen.pb"
    write_graph(path, frozen.graph, frozen.weights)
    size = path.stat().st_size
    stripped = strip_weights(tf.compat.v1.GraphDef.FromString(path.read_bytes()))
    assert sum(value.nbytes for value in stripped.weights.values()) > 0.75 * size
    assert stripped.graph.ByteSize() < 0.25 * size


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = flattened()
    kernel, bias = model.get_layer("fc1").get_weights()
    kernel[3, 5] = np.nan
    model.get_layer("fc1").set_weights([kernel, bias])
    with pytest.raises(WorkerError, match=r"fc1.* 1 NaN") as raised:
        converted(model, tmp_path, channels_first=True)
    assert raised.value.code == "INVALID_ARGUMENT"


def test_damaged_graphs_are_refused(tmp_path: Path) -> None:
    frozen = freeze(keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2, name="y")]))
    path = tmp_path / "frozen.pb"
    write_graph(path, frozen.graph, frozen.weights)
    data = path.read_bytes()
    for content in (b"", data[: len(data) // 2], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(WorkerError) as raised:
            convert(path, frozen.signature, channels_first=True, opset=17, progress=silent)
        assert raised.value.code == "INVALID_ARGUMENT"


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_the_zoo_converts_within_tolerance(name: str, tmp_path: Path) -> None:
    frozen = succeed("freeze", tmp_path / "frozen", zoo={"architecture": name, "seed": 0}).output
    done = succeed("convert", tmp_path / "onnx", {"frozen": frozen}, layout="nchw")
    operators = done.result["operators"]
    assert "Transpose" not in operators
    # Batch norms that follow an addition or a pooling have no convolution before them.
    assert operators.get("BatchNormalization", 0) == (17 if name == "resnet_v2_50" else 0)
    assert not {"Mul", "Sub", "MatMul", "Shape", "Cast", "Identity"} & set(operators)
    assert done.result["peak_memory_bytes"] < (3 << 30 if name.startswith("vgg") else 3 << 29)
    model = onnx.load(str(done.output / "model.onnx"))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    height, width, channels = ENTRIES[name].input_shape
    image = np.random.default_rng(0).standard_normal((1, height, width, channels)).astype(np.float32)
    found = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: image.transpose(0, 3, 1, 2)})[0]
    assert error(found, graph_output(frozen, image)) < TOLERANCE


def graph_output(frozen: Path, image: np.ndarray) -> np.ndarray:
    """What TensorFlow computes from a frozen graph."""
    signature = json.loads((frozen / "signature.json").read_text())
    definition = tf.compat.v1.GraphDef.FromString((frozen / "frozen.pb").read_bytes())
    names = [f"{signature[side][0]['name']}:0" for side in ("inputs", "outputs")]
    function = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(definition, name=""), [])
    pruned = function.prune(*(function.graph.as_graph_element(name) for name in names))
    return np.asarray(pruned(tf.constant(image)))


def test_gelu_and_grouped_convolutions_are_written_with_onnxs_operators(tmp_path: Path) -> None:
    image = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(8, 3, groups=2, activation="gelu", name="grouped")(image)
    model = random_weights(keras.Model(image, layers.Dense(3, name="dense")(layers.GlobalAveragePooling2D()(x))))
    graph, _ = converted(model, tmp_path, channels_first=False)
    assert all(onnx.defs.has(node.op_type) for node in graph.nodes)
    images = np.random.default_rng(0).standard_normal((5, 6, 6, 4)).astype(np.float32)
    (found,) = ReferenceEvaluator(graph.to_model()).run(None, {"image": images})
    assert error(found, np.asarray(model(images))) < TOLERANCE


def test_operators_that_onnx_lacks_are_named(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
        tf.identity(tf.math.lgamma(x, name="gamma"), name="y")
    (tmp_path / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    spec = {"dtype": "FP32", "shape": [-1, 4]}
    value = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}], "batched": True}
    with pytest.raises(WorkerError, match="'Lgamma'"):
        convert(tmp_path / "frozen.pb", Signature.from_json(value), channels_first=False, opset=17, progress=silent)
