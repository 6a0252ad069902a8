"""The stages of the tensorflow environment, end to end, as processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from enginehouse_worker.freezing.freeze import freeze
from enginehouse_worker.zoo.entries import ENTRIES
from enginehouse_worker.zoo.inception_v4 import inception_v4
from keras import layers
from onnx.reference import ReferenceEvaluator
from stages import run, succeed, write_dataset

pytestmark = pytest.mark.tensorflow
PROFILE = {"min": 1, "opt": 2, "max": 4}


def small_classifier() -> Any:
    """Every construct of a residual classifier, with dropout, and statistics that differ from the initial ones."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    short = layers.ReLU(name="stem_relu")(x)
    x = layers.ZeroPadding2D(1, name="pad")(short)
    x = layers.Conv2D(8, 3, name="body")(x)
    x = layers.BatchNormalization(name="body_bn")(x)
    x = layers.ReLU(name="out")(layers.Add(name="add")([x, short]))
    x = layers.MaxPooling2D(3, 2, name="pool")(layers.ZeroPadding2D(1, name="pool_pad")(x))
    x = layers.Dropout(0.5)(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(x))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return small_classifier()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def frozen(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keras")
    model.save(directory / "model.keras")
    return succeed("freeze", tmp_path_factory.mktemp("frozen"), {"model": directory}).output


def test_the_signature_has_the_layers_names(frozen: Path) -> None:
    signature = json.loads((frozen / "signature.json").read_text())
    assert signature == {
        "inputs": [{"name": "image", "dtype": "FP32", "shape": [-1, 16, 16, 3]}],
        "outputs": [{"name": "classes", "dtype": "FP32", "shape": [-1, 10]}],
        "batched": True,
    }


@pytest.mark.parametrize("layout", ["keep", "nchw"])
def test_the_onnx_model_computes_what_keras_does(
    layout: str, frozen: Path, model: Any, images: np.ndarray, tmp_path: Path
) -> None:
    done = succeed("convert", tmp_path / "onnx", {"frozen": frozen}, layout=layout)
    converted = onnx.load(str(done.output / "model.onnx"))
    onnx.checker.check_model(converted, full_check=True)
    assert converted.ir_version == 8
    operators = done.result["operators"]
    assert operators.get("Transpose", 0) == (1 if layout == "keep" else 0)
    assert operators["Conv"] == 2
    assert operators["Gemm"] == 1
    assert not {"BatchNormalization", "Pad", "Mul", "Sub", "MatMul"} & set(operators)
    names = {node.name for node in converted.graph.node}
    assert {"out/Relu", "add/Add", "classes/Gemm", "classes/Softmax"} <= names
    feed = images if layout == "keep" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    signature = json.loads((done.output / "signature.json").read_text())
    assert signature["inputs"][0]["shape"] == [-1, *feed.shape[1:]]
    found = ReferenceEvaluator(converted).run(None, {"image": feed})[0]
    np.testing.assert_allclose(found, model(images, training=False), atol=1e-5)


def test_the_tensorflow_engine_agrees_with_keras(frozen: Path, model: Any, images: np.ndarray, tmp_path: Path) -> None:
    built = succeed(
        "build",
        tmp_path / "engine",
        {"model": frozen},
        backend="tensorflow",
        precision="FP32",
        profile=PROFILE,
        options={"intra_op_threads": "1"},
    )
    engine = json.loads((built.output / "engine.json").read_text())
    assert engine["payload"] == "saved_model"
    data = write_dataset(tmp_path / "data", x=images, labels=np.arange(6))
    reference = tmp_path / "reference"
    reference.mkdir()
    np.savez(reference / "outputs.npz", classes=np.asarray(model(images, training=False)))
    inputs = {"engine": built.output, "reference": reference, "dataset": data}
    found = succeed("verify", tmp_path / "verified", inputs).result["verification"]
    assert found["top1_agreement"] == 1.0
    assert found["outputs"]["classes"]["compared_logits"] is True
    assert found.get("sqnr_db", 200.0) > 60


def test_tensorflow_has_no_int8(frozen: Path, tmp_path: Path) -> None:
    error = run("build", tmp_path / "engine", {"model": frozen}, backend="tensorflow", precision="INT8").error
    assert error["code"] == "FAILED_PRECONDITION"
    assert "onnxruntime" in error["message"]


def test_h5_files_freeze_too(model: Any, tmp_path: Path) -> None:
    directory = tmp_path / "keras"
    directory.mkdir()
    model.save(directory / "model.h5")
    done = succeed("freeze", tmp_path / "frozen", {"model": directory})
    assert done.result["parameters"] == model.count_params()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_model_file_is_refused(suffix: str, tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    directory = tmp_path / "keras"
    directory.mkdir()
    keras.Model(inputs, layers.Lambda(lambda x: x * 2, name="twice")(inputs)).save(directory / f"model{suffix}")
    error = run("freeze", tmp_path / "frozen", {"model": directory}).error
    assert error["code"] == "INVALID_ARGUMENT"
    assert "twice" in error["message"]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
def test_files_that_are_no_models_are_refused(content: bytes, tmp_path: Path) -> None:
    for suffix in (".keras", ".h5"):
        directory = tmp_path / suffix
        directory.mkdir()
        (directory / f"model{suffix}").write_bytes(content)
        error = run("freeze", tmp_path / f"out{suffix}", {"model": directory}).error
        assert error["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "neither"),
        ({"zoo": {"architecture": "resnet50"}}, "did you mean"),
        ({"zoo": {"seed": 1}}, "'architecture' is missing"),
        ({"zoo": {"architecture": "vgg16", "weights": "caffe"}}, "unknown parameter"),
    ],
)
def test_bad_freezes_are_explained(params: dict[str, Any], expected: str, tmp_path: Path) -> None:
    error = run("freeze", tmp_path / "out", **params).error
    assert error["code"] == "INVALID_ARGUMENT"
    assert expected in error["message"]


def test_several_inputs_and_outputs_keep_their_names_and_order() -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((3, 5), name="right side")
    both = layers.Concatenate()([left, layers.Flatten()(right)])
    model = keras.Model(
        {"left": left, "right side": right}, [layers.Dense(2, name="small")(both), layers.Dense(7, name="large")(both)]
    )
    signature = freeze(model).signature
    assert [spec.name for spec in signature.inputs] == ["left", "right_side"]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("small", (-1, 2)), ("large", (-1, 7))]
    assert signature.batched


def test_inception_v4_has_the_published_size() -> None:
    model = inception_v4((299, 299, 3), 1000)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == ENTRIES["inception_v4"].parameters
    assert model.get_layer("reduction_a").output.shape[1:] == (17, 17, 1024)
    assert model.get_layer("inception_c3").output.shape[1:] == (8, 8, 1536)


@pytest.mark.slow
def test_a_zoo_network_tells_inputs_apart_and_is_reproducible(tmp_path: Path) -> None:
    zoo = {"architecture": "resnet_v1_50", "seed": 3}
    first, second = (succeed("freeze", tmp_path / name, zoo=zoo).result for name in ("a", "b"))
    assert first["files"]["frozen.pb"]["digest"] == second["files"]["frozen.pb"]["digest"]
