"""Weights that stay out of the graph until it is written give the graph that TensorFlow's own conversion gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from enginehouse_worker.freezing.freeze import freeze
from enginehouse_worker.freezing.frozen_file import write_graph
from enginehouse_worker.zoo.statistics import _features
from keras import layers

pytestmark = pytest.mark.tensorflow


def classifier(dtype: str = "float32") -> Any:
    """Large and small weights, and a tensor (not a variable) that the function captures."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(image)
    x = layers.Conv2D(8, 3, name="conv", dtype=dtype)(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dense(64, name="hidden", dtype=dtype)(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(5, name="classes", dtype="float32")(x))


def recurrent() -> Any:
    """A loop that reads its weights in a function of its own."""
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32", name="words")
    return keras.Model(words, layers.LSTM(16, name="memory")(layers.Embedding(200, 16, name="table")(words)))


def written(model: Any, path: Path) -> tuple[Any, set[str]]:
    frozen = freeze(model)
    write_graph(path, frozen.graph, frozen.weights)
    return tf.compat.v1.GraphDef.FromString(path.read_bytes()), set(frozen.weights)


def value(node: Any) -> Any:
    return tf.make_ndarray(node.attr["value"].tensor)


def run(graph: Any, model: Any, given: Any) -> Any:
    wrapped = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(graph, name=""), [])
    fed = tf.constant(given, model.inputs[0].dtype)
    return wrapped.prune(f"{model.inputs[0].name}:0", f"{model.output_names[0]}:0")(fed).numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_graph_is_as_tensorflow_converts_it(dtype: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = classifier(dtype)
    light, weights = written(model, tmp_path / "light.pb")
    assert len(weights) == 1
    assert next(iter(weights)).startswith("hidden/")
    monkeypatch.setattr("enginehouse_worker.freezing.freeze.with_constants", lambda function: None)
    whole, _ = written(model, tmp_path / "whole.pb")
    ours, theirs = ({node.name: node for node in graph.node} for graph in (light, whole))
    assert set(ours) == set(theirs)
    for name, node in ours.items():
        assert (node.op, list(node.input)) == (theirs[name].op, list(theirs[name].input))
        if node.op == "Const":
            # Zeros may be written in two ways.
            np.testing.assert_array_equal(value(node), value(theirs[name]), err_msg=name)
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(light, model, images), run(whole, model, images))


def test_functions_that_read_weights_are_converted_by_tensorflow(tmp_path: Path) -> None:
    model = recurrent()
    graph, weights = written(model, tmp_path / "frozen.pb")
    assert not weights
    words = np.arange(12, dtype=np.int32).reshape(2, 6)
    np.testing.assert_allclose(run(graph, model, words), np.asarray(model(words)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_layers_one_at_a_time_compute_what_the_model_computes(training: bool) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(image)
    left, right = layers.BatchNormalization()(x), layers.ReLU()(x)
    x = layers.Add()([left, right])
    x = layers.Concatenate()([x, left, layers.MaxPooling2D(1)(x)])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(2)(x))
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    expected = keras.Model(image, x)(images, training=training)
    np.testing.assert_array_equal(_features(model, images, training=training), expected)
