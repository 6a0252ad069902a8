"""Models of every TensorFlow format become frozen graphs that compute the same; what cannot is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.zoo.entries import ENTRIES
from enginehouse_worker.zoo.weights import load_weights
from keras import layers
from models import constant_graph, freeze, packed, small_model, v1

pytestmark = pytest.mark.tensorflow
IMAGES = np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def refusal(path: Path, output: Path, **params: Any) -> str:
    with pytest.raises(WorkerError) as caught:
        freeze(path, output, **params)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not (output / "signature.json").exists()
    return caught.value.message


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "classifier"
    model.export(directory, verbose=False)
    return directory


@pytest.mark.parametrize(("kind", "wrapped"), [("zip", False), ("zip", True), ("gztar", True), ("tar", False)])
def test_a_keras_export_freezes_from_any_archive(
    kind: str, wrapped: bool, saved: Path, model: Any, tmp_path: Path
) -> None:
    frozen = freeze(packed(saved, kind, wrapped=wrapped), tmp_path / "out")
    assert frozen.signature == {
        "inputs": [{"name": "image", "dtype": "FP32", "shape": [-1, 8, 8, 3]}],
        "outputs": [{"name": "output_0", "dtype": "FP32", "shape": [-1, 5]}],
        "batched": True,
    }
    assert frozen.facts["signature"] == "serving_default"
    assert frozen.facts["parameters"] == model.count_params()
    assert "StatefulPartitionedCall" not in frozen.operators
    assert not frozen.graph.library.function
    assert {"Conv2D", "MatMul", "Softmax"} <= frozen.operators
    np.testing.assert_allclose(frozen(IMAGES), model(IMAGES, training=False), atol=1e-6)


def test_a_module_with_several_signatures_freezes_by_name(tmp_path: Path) -> None:
    class Scaling(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = tf.Variable([1.0, 2.0, 3.0, 4.0], name="factor")

        @tf.function(input_signature=[tf.TensorSpec([None, 4], name="rows")])
        def scale(self, rows: Any) -> Any:
            tf.debugging.assert_all_finite(rows, "rows")
            return {"scaled": rows * self.factor, "total": tf.reduce_sum(rows * self.factor, axis=1)}

    module = Scaling()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"scale": module.scale})
    archive = packed(tmp_path / "m")
    message = refusal(archive, tmp_path / "none")
    assert "no signature 'serving_default'" in message and "it has scale" in message
    assert "did you mean 'scale'" in refusal(archive, tmp_path / "typo", **{"import": {"signature": "scales"}})
    frozen = freeze(archive, tmp_path / "out", **{"import": {"signature": "scale"}})
    assert frozen.facts["outputs"] == ["scaled", "total"]
    np.testing.assert_allclose(frozen(ROWS), ROWS * [1, 2, 3, 4], rtol=1e-6)


def test_a_model_of_tensorflow_1_freezes(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [1, 4], name="x")
        trains = v1.placeholder_with_default(False, [], name="is_training")
        old = v1.get_variable("old", [4, 3], use_resource=False)
        new = v1.get_variable("new", [3, 3], use_resource=True)
        with tf.control_dependencies([v1.assert_equal(trains, False)]):
            y = tf.identity(tf.matmul(tf.nn.relu(tf.matmul(x, old)), new), name="y")
        session.run(v1.global_variables_initializer())
        expected = np.concatenate([session.run(y, {x: row[None]}) for row in ROWS])
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"logits": y})
        (tmp_path / "graph.pb").write_bytes(session.graph.as_graph_def().SerializeToString())
    frozen = freeze(packed(tmp_path / "m"), tmp_path / "out")
    # Exported for one sample at a time, and its computation takes any number.
    assert frozen.signature["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}]
    assert frozen.signature["batched"]
    assert frozen.operators == {"Placeholder", "Const", "MatMul", "Relu", "Identity"}
    np.testing.assert_allclose(frozen(ROWS), expected, rtol=1e-5)
    message = refusal(tmp_path / "graph.pb", tmp_path / "no", **{"import": {"outputs": ["y"]}})
    assert "not frozen" in message and "old" in message


def test_lookup_tables_are_named(tmp_path: Path) -> None:
    class Words(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], [0.0, 1.0])
            self.table = tf.lookup.StaticHashTable(pairs, -1.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def look_up(self, words: Any) -> Any:
            return self.table.lookup(words)

    module = Words()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.look_up)
    assert "LookupTableFindV2" in refusal(packed(tmp_path / "m"), tmp_path / "out")


def test_saved_models_that_reach_out_are_refused_before_they_run(tmp_path: Path) -> None:
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], name="rows")])
        def read(self, rows: Any) -> Any:
            return rows + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    module = Reader()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.read)
    assert "ReadFile" in refusal(packed(tmp_path / "m"), tmp_path / "out")


def test_missing_parts_of_a_saved_model_are_named(saved: Path, tmp_path: Path) -> None:
    def without(part: str) -> Path:
        with zipfile.ZipFile(tmp_path / f"no_{part}.zip", "w") as archive:
            for file in saved.rglob("*"):
                if part not in file.name and file.is_file():
                    archive.write(file, file.relative_to(saved))
        return tmp_path / f"no_{part}.zip"

    assert "variables.index" in refusal(without("index"), tmp_path / "a")
    assert "cannot be restored" in refusal(without("data-"), tmp_path / "b")
    assert "neither Keras's" in refusal(without("saved_model"), tmp_path / "c")
    assert "upload the whole folder" in refusal(saved / "saved_model.pb", tmp_path / "d")


def test_a_frozen_graphs_interface_is_inferred_or_given(tmp_path: Path) -> None:
    path = constant_graph(tmp_path / "graph.pb")
    whole = freeze(path, tmp_path / "whole")
    assert (whole.facts["inputs"], whole.facts["outputs"]) == (["x"], ["head_probabilities"])
    assert whole.facts["parameters"] == 4 * 6 + 6 * 3
    assert "Print" not in whole.operators
    part = freeze(path, tmp_path / "part", **{"import": {"inputs": ["first/relu:0"], "outputs": ["passed"]}})
    np.testing.assert_array_equal(part(ROWS.repeat(2, 1)[:, :6]), ROWS.repeat(2, 1)[:, :6])
    for given, expected in (
        ({"outputs": ["head/probabilites"]}, "did you mean 'head/probabilities'"),
        ({"inputs": ["y"]}, "no input 'y'"),
        ({"inputs": ["x:3"]}, "has 1 outputs"),
        ({"inputs": ["passed", "x"]}, "do not need the inputs ['x']"),
        ({"inputs": ["second/weights"]}, "also need the placeholders"),
        ({"signature": "serve"}, "is for a saved_model"),
    ):
        assert expected in refusal(path, tmp_path / f"no{len(list(tmp_path.iterdir()))}", **{"import": given})


def test_only_a_batch_that_means_nothing_is_freed(tmp_path: Path) -> None:
    assert freeze(constant_graph(tmp_path / "one.pb", batch=1), tmp_path / "one").signature["batched"]
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 4], name="x")
        tf.subtract(x, tf.reduce_mean(x, axis=0, keepdims=True), name="y")
    (tmp_path / "two.pb").write_bytes(graph.as_graph_def().SerializeToString())
    mixed = freeze(tmp_path / "two.pb", tmp_path / "two")
    assert mixed.signature["inputs"][0]["shape"] == [2, 4]
    assert not mixed.signature["batched"]
    small_model(batch_size=1).save(tmp_path / "one.keras")
    assert freeze(tmp_path / "one.keras", tmp_path / "keras").signature["inputs"][0]["shape"] == [-1, 8, 8, 3]


def test_unknown_rank_and_unknown_operations_are_explained(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.nn.relu(v1.placeholder(tf.float32, name="x"), name="y")
    definition = graph.as_graph_def()
    (tmp_path / "rank.pb").write_bytes(definition.SerializeToString())
    assert "'x' has no fixed number of dimensions" in refusal(tmp_path / "rank.pb", tmp_path / "a")
    definition.node[1].op = "MyRelu"
    (tmp_path / "op.pb").write_bytes(definition.SerializeToString())
    assert "'MyRelu' (node 'y')" in refusal(tmp_path / "op.pb", tmp_path / "b")
    definition.node[1].op, definition.node[1].input[0] = "Relu", "gone"
    (tmp_path / "gap.pb").write_bytes(definition.SerializeToString())
    assert "'gone'" in refusal(tmp_path / "gap.pb", tmp_path / "c")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_in_every_format(value: float, tmp_path: Path) -> None:
    bad = small_model()
    kernel, bias = bad.get_layer("conv").get_weights()
    kernel[0, 0, 0, 0] = value
    bad.get_layer("conv").set_weights([kernel, bias])
    bad.save(tmp_path / "bad.keras")
    bad.save(tmp_path / "bad.h5")
    bad.export(tmp_path / "bad", verbose=False)
    for path in (tmp_path / "bad.keras", tmp_path / "bad.h5", packed(tmp_path / "bad")):
        message = refusal(path, tmp_path / f"out{path.suffix}")
        assert "NaN or infinite" in message and "conv" in message and "1 of 108" in message
    message = refusal(constant_graph(tmp_path / "bad.pb", weight=value), tmp_path / "out.pb")
    assert "first/weights (1 of 24 values)" in message


def test_infinities_among_zeros_are_a_mask_unless_an_operator_multiplies_with_them(tmp_path: Path) -> None:
    row = np.array([[0.0, -np.inf, 0.0, 0.0]], np.float32)
    for name, multiplied in (("mask", False), ("weights", True)):
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
            constant = tf.identity(tf.constant(row.T if multiplied else row, name=name))
            tf.nn.softmax(tf.matmul(x, constant) if multiplied else x + constant, name="y")
        (tmp_path / f"{name}.pb").write_bytes(graph.as_graph_def().SerializeToString())
    freeze(tmp_path / "mask.pb", tmp_path / "out")
    assert "weights (1 of 4 values)" in refusal(tmp_path / "weights.pb", tmp_path / "refused")


def lambdas() -> dict[str, Any]:
    rows = keras.Input((3, 4))
    plain = layers.Lambda(lambda x: x * 2, name="twice")
    inner = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2, name="twice")], name="inner")
    return {
        "plain": keras.Model(rows, plain(rows)),
        "in TimeDistributed": keras.Model(rows, layers.TimeDistributed(plain, name="each")(rows)),
        "in a nested model": keras.Model(rows, layers.TimeDistributed(inner, name="each")(rows)),
    }


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["plain", "in TimeDistributed", "in a nested model"])
def test_lambdas_are_refused_wherever_they_are_unless_allowed(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    lambdas()[kind].save(path)
    message = refusal(path, tmp_path / "no")
    assert "'twice'" in message and "ENGINEHOUSE_ALLOW_UNSAFE_MODELS=true" in message
    assert ("'each'" in message) == (kind != "plain")
    rows = np.ones((2, 3, 4), np.float32)
    np.testing.assert_array_equal(freeze(path, tmp_path / "out", allow_unsafe=True)(rows), rows * 2)


def test_lambdas_as_arguments_and_custom_classes_are_named(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class Doubling(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    rows = keras.Input((4,))
    keras.Model(rows, Doubling(name="doubling")(rows), name="double").save(tmp_path / "custom.keras")
    message = refusal(tmp_path / "custom.keras", tmp_path / "a")
    assert "'doubling' in 'double' is of the custom class mine>Doubling" in message
    assert "not in the file" in refusal(tmp_path / "custom.keras", tmp_path / "b", allow_unsafe=True)
    keras.Model(rows, layers.Dense(2, activation=lambda x: x, name="dense")(rows), name="single").save(
        tmp_path / "argument.keras"
    )
    assert "'dense' in 'single' holds a Python lambda" in refusal(tmp_path / "argument.keras", tmp_path / "c")


def edited(source: Path, target: Path, change: Any) -> Path:
    """A .keras file with its configuration changed, as someone who means harm would."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename == "config.json":
                configuration = json.loads(data)
                change(configuration)
                data = json.dumps(configuration).encode()
            new.writestr(member.filename, data)
    return target


@pytest.mark.parametrize(
    "function",
    [
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp", "name": "wrapped"}},
    ],
)
def test_functions_that_do_things_are_refused(function: dict[str, Any], model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "good.keras")

    def change(configuration: dict[str, Any]) -> None:
        dense = next(item for item in configuration["config"]["layers"] if item["name"] == "classes")
        dense["config"]["activation"] = function

    message = refusal(edited(tmp_path / "good.keras", tmp_path / "bad.keras", change), tmp_path / "out")
    assert "'classes'" in message
    assert str(function["config"] if function["class_name"] == "function" else "a path") in message


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".zip", ".tar.gz", ".pb"])
@pytest.mark.parametrize("content", [b"", b"\x00", b"nonsense " * 300, b"PK\x03\x04" + bytes(99), b"\x89HDF\r\n\x1a\n"])
def test_what_is_no_model_is_said_to_be_none(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    message = refusal(path, tmp_path / "out")
    assert "Traceback" not in message
    assert ("0 bytes" in message) == (not content)


def test_mislabelled_files_are_told_what_they_are(model: Any, saved: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "a.keras")
    model.save(tmp_path / "b.h5")
    for source, name, expected in (
        (tmp_path / "a.keras", "x.h5", "Keras v3 file"),
        (tmp_path / "a.keras", "x.zip", "Keras v3 file"),
        (tmp_path / "b.h5", "x.keras", "Keras HDF5 file"),
        (packed(saved), "x.keras", "archive of a SavedModel"),
        (packed(saved, "gztar"), "x.pb", "archive of a SavedModel"),
    ):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert f"its content is a{'n' if expected[0] == 'a' else ''} {expected}" in refusal(
            tmp_path / name, tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        )
    # A name may say nothing where the format is given.
    (tmp_path / "blob").write_bytes((tmp_path / "a.keras").read_bytes())
    assert freeze(tmp_path / "blob", tmp_path / "named", format="keras").facts["format"] == "keras"
    assert "name that says no format" in refusal(tmp_path / "blob", tmp_path / "unnamed")


def test_weights_go_into_their_architecture_from_every_file_of_keras(tmp_path: Path) -> None:
    trained = small_model()
    trained.get_layer("classes").set_weights([np.full((4, 5), 0.5, np.float32), np.arange(5, dtype=np.float32)])
    trained.save_weights(tmp_path / "a.weights.h5")
    trained.save(tmp_path / "b.h5")
    trained.save(tmp_path / "c.keras")
    for path in sorted(tmp_path.iterdir()):
        # A stage's input is called as its caller likes.
        renamed = path.rename(tmp_path / f"{path.name[0]}_renamed")
        fresh = small_model()
        load_weights(fresh, renamed)
        np.testing.assert_array_equal(fresh(IMAGES), trained(IMAGES))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D()(x)
    other = keras.Model(image, layers.Dense(5, name="classes")(x))
    other.save_weights(tmp_path / "a.weights.h5")
    other.save(tmp_path / "b.h5")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WorkerError, match="conv") as caught:
            load_weights(small_model(), path)
        assert "(3, 3, 3, 6)" in caught.value.message and "(3, 3, 3, 4)" in caught.value.message
    (tmp_path / "c.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:5000])
    with pytest.raises(WorkerError, match=r"c\.h5"):
        load_weights(small_model(), tmp_path / "c.h5")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["unrelated"] = np.zeros(3)
    with pytest.raises(WorkerError, match="do not fit"):
        load_weights(small_model(), tmp_path / "d.h5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_the_zoo_has_the_published_sizes(name: str) -> None:
    from enginehouse_worker.zoo import build

    entry = ENTRIES[name]
    model = build(entry, entry.classes)
    weights = model.trainable_weights if name == "inception_v4" else model.weights
    assert sum(int(np.prod(weight.shape)) for weight in weights) == entry.parameters
    assert model.inputs[0].shape[1:] == entry.input_shape


def test_a_crash_of_the_framework_is_an_error_about_the_file() -> None:
    code = (
        "import os, sys\n"
        "from enginehouse_worker.errors import WorkerError\n"
        "from enginehouse_worker.freezing.guarded import cpu_limit, run_guarded\n"
        "def loop():\n    with cpu_limit(1):\n        while True: pass\n"
        "try:\n    run_guarded(os.abort, 'model.pb')\n"
        "except WorkerError as error:\n    print(error.code, error.message)\n"
        "try:\n    run_guarded(loop, 'model.h5')\n"
        "except WorkerError as error:\n    print(error.code, error.message)\n"
        "print(run_guarded(lambda: {'answer': 42}, 'x')['answer'])\n"
        "try:\n    run_guarded(lambda: open('/nowhere'), 'x')\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    crash, loop, answer, number = done.stdout.splitlines()
    assert crash.startswith("INVALID_ARGUMENT model.pb makes the framework crash (SIGABRT)")
    assert loop.startswith("INVALID_ARGUMENT model.h5 keeps its parser busy")
    assert (answer, number) == ("42", "2")


def test_mutated_files_end_in_a_graph_or_a_clear_error() -> None:
    script = Path(__file__).parent / "fuzz_freezing.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(script), "--count", "240", "--seed", "1"], env=environment, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(sum(ends.values()) for ends in counts.values()) == 240
    assert all(ends.get("INVALID_ARGUMENT", 0) > 10 for ends in counts.values())
