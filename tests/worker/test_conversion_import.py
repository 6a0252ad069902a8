"""import: uploaded ONNX files become clean FP32 graphs that compute the same."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.conversion.onnx_import import Imported, import_onnx
from enginehouse_worker.errors import WorkerError
from networks import Network, residual_classifier
from onnx import TensorProto, helper, numpy_helper
from stages import run, succeed
from transformer import encoder


def silent(fraction: float, message: str) -> None:
    """No progress."""


def imported(model: onnx.ModelProto, tmp_path: Path) -> Imported:
    path = tmp_path / "uploaded.onnx"
    path.write_bytes(model.SerializeToString())
    return import_onnx(path, tmp_path, silent)


def refused(model: onnx.ModelProto | bytes, tmp_path: Path) -> str:
    path = tmp_path / "uploaded.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(WorkerError) as raised:
        import_onnx(path, tmp_path, silent)
    assert raised.value.code == "INVALID_ARGUMENT"
    return raised.value.message


def compute(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return list(onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds))


def operators(found: Imported) -> set[str]:
    return {node.op_type for node in found.graph.nodes}


def with_batch_norms(batch: int | str = "batch") -> onnx.ModelProto:
    """What exporters write: batch norms after convolutions with and without bias and after Gemm, one before a
    convolution, an Identity, a Dropout, and a flattening through Shape, Slice and Concat.
    """
    net = Network((3, 8, 8))

    def norm(x: str, channels: int) -> str:
        values = [net.random.uniform(0.5, 1.5, channels) for _ in range(4)]
        return net.node("BatchNormalization", [x, *(net.constant(v) for v in values)], epsilon=1e-3)

    x = net.conv("input", 4)
    x = net.node("Relu", [norm(x, 4)])
    no_bias = net.node("Conv", [x, net.constant(net.random.standard_normal((4, 4, 1, 1)))], kernel_shape=[1, 1])
    net.channels[no_bias] = 4
    scaled = net.node("Mul", [no_bias, net.constant(net.random.uniform(0.5, 1.5, (1, 4, 1, 1)))])
    shifted = net.node("Add", [net.constant(net.random.standard_normal((4, 1, 1))), scaled])
    x = net.node("Add", [norm(shifted, 4), x])
    x = net.node("Relu", [norm(net.node("Identity", [x]), 4)])
    net.channels[x] = 4
    x = net.conv(x, 2)
    size = net.node("Slice", [net.node("Shape", [x]), net.constant([0], np.int64), net.constant([1], np.int64)])
    target = net.node("Concat", [size, net.constant([-1], np.int64)], axis=0)
    turned = net.node("Transpose", [x], perm=[0, 2, 3, 1])
    flat = net.node("Reshape", [turned, target])
    x = norm(net.dense(flat, 128, 6), 6)
    x = net.node("Dropout", [x])
    model = net.model({x: [batch, 6]})
    if batch != "batch":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = int(batch)
    return model


@pytest.mark.parametrize("batch", ["batch", 1])
def test_an_exported_network_becomes_clean_and_computes_the_same(batch: int | str, tmp_path: Path) -> None:
    model = with_batch_norms(batch)
    found = imported(model, tmp_path)
    assert found.signature.batched
    assert [spec.shape for spec in found.signature.inputs] == [(-1, 3, 8, 8)]
    assert [node.op_type for node in found.graph.nodes] == [
        "Conv", "Relu", "Conv", "Add", "BatchNormalization", "Relu", "Conv", "Reshape", "Gemm",
    ]  # fmt: skip
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    whole = compute(found.graph.to_model(), {"input": images})[0]
    rows = [compute(model, {"input": images[row : row + 1]})[0] for row in range(3)]
    np.testing.assert_allclose(whole, np.concatenate(rows), rtol=1e-4, atol=1e-5)


def test_the_names_that_the_author_gave_stay(tmp_path: Path) -> None:
    model = residual_classifier()
    model.graph.node[1].name = ""
    found = imported(model, tmp_path)
    assert [n.name for n in found.graph.nodes if n.op_type == "Conv"] == [
        n.name for n in model.graph.node if n.op_type == "Conv"
    ]
    assert found.graph.nodes[1].name == "Relu/relu1_out"


def test_a_transformer_with_integer_inputs(tmp_path: Path) -> None:
    model = encoder()
    found = imported(model, tmp_path)
    assert found.signature.batched
    random = np.random.default_rng(1)
    feeds = {}
    for spec in found.signature.inputs:
        shape = [d if d > 0 else (5, 12)[min(axis, 1)] for axis, d in enumerate(spec.shape)]
        wide = random.standard_normal(shape).astype(np.float32)
        feeds[spec.name] = wide if spec.dtype == "FP32" else random.integers(0, 2, shape).astype(np.int64)
    for before, after in zip(compute(model, feeds), compute(found.graph.to_model(), feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def small(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 17, **kwargs: Any) -> Any:
    """A model from `x` (batch, 4) to `y`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kwargs.get("dtype", TensorProto.FLOAT), kwargs.get("shape", ["batch", 4]))],
        [helper.make_tensor_value_info("y", kwargs.get("dtype", TensorProto.FLOAT), kwargs.get("out", ["batch", 4]))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=kwargs.get("ir", 8))


def test_a_graph_that_mixes_samples_keeps_its_fixed_dimension(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1)
    model = small([mean, helper.make_node("Sub", ["x", "mean"], ["y"])], {}, shape=[1, 4], out=[1, 4])
    found = imported(model, tmp_path)
    assert not found.signature.batched
    assert found.signature.inputs[0].shape == (1, 4)
    assert "depend on each other" in found.facts["batch"]
    fixed = small([helper.make_node("Relu", ["x"], ["y"])], {}, shape=[2, 4], out=[2, 4])
    assert not imported(fixed, tmp_path).signature.batched


def test_reshapes_to_a_batch_of_one_follow_the_batch(tmp_path: Path) -> None:
    constants = {"wide": np.array([1, 2, 2]), "flat": np.array([1, -1])}
    nodes = [
        helper.make_node("Reshape", ["x", "wide"], ["square"], name="a"),
        helper.make_node("Relu", ["square"], ["r"], name="r"),
        helper.make_node("Reshape", ["r", "flat"], ["y"], name="b"),
    ]
    found = imported(small(nodes, constants, shape=[1, 4], out=[1, 4]), tmp_path)
    assert found.signature.batched
    feed = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(compute(found.graph.to_model(), {"x": feed})[0], feed)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 20])
def test_other_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    constants = {"w": random.standard_normal((4, 4)).astype(np.float32), "b": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="g"),
        helper.make_node("Softmax", ["g"], ["s"], name="s", axis=1),
    ]
    if opset < 13:
        nodes.append(helper.make_node("Squeeze", ["u"], ["y"], name="q", axes=[1]))
        nodes.insert(2, helper.make_node("Unsqueeze", ["s"], ["u"], name="u", axes=[1]))
    elif opset < 18:
        nodes.append(helper.make_node("ReduceMax", ["s"], ["y"], name="y", axes=[1], keepdims=0))
    else:
        constants["axes"] = np.array([1])
        nodes.append(helper.make_node("ReduceMax", ["s", "axes"], ["y"], name="y", keepdims=1))
    out = ["batch", 4] if opset < 13 else ["batch"] if opset < 18 else ["batch", 1]
    model = small(nodes, constants, opset, ir=3 if opset < 9 else 8, out=out)
    if opset < 9:
        # Initializers are inputs as well before IR version 4.
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    found = imported(model, tmp_path)
    assert found.facts["uploaded_opset"] == opset
    assert found.graph.opset == 17
    assert [spec.name for spec in found.signature.inputs] == ["x"]
    feed = random.standard_normal((2, 4)).astype(np.float32)
    before = compute(model, {"x": feed})[0]
    np.testing.assert_allclose(compute(found.graph.to_model(), {"x": feed})[0], before, rtol=1e-5)


def test_half_precision_becomes_fp32(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16, name="down"),
        helper.make_node("MatMul", ["h", "w"], ["m"], name="product"),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT16, name="up"),
    ]
    found = imported(small(nodes, {"w": weight}, dtype=TensorProto.FLOAT16), tmp_path)
    assert found.facts["cast_to_fp32"]
    assert [node.op_type for node in found.graph.nodes] == ["Gemm"]
    assert {spec.dtype for spec in (*found.signature.inputs, *found.signature.outputs)} == {"FP32"}
    feed = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    result = compute(found.graph.to_model(), {"x": feed})[0]
    np.testing.assert_allclose(result, feed @ weight.astype(np.float32), rtol=1e-5, atol=1e-6)


def test_a_quantized_model_is_taken_as_it_is(tmp_path: Path) -> None:
    constants = {"scale": np.array(0.5, np.float32), "zero": np.array(3, np.int8), "w": np.full((4, 4), 7, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"], name="dw"),
        helper.make_node("MatMul", ["d", "dw"], ["y"], name="product"),
    ]
    found = imported(small(nodes, constants), tmp_path)
    assert found.facts["quantized"]
    assert [node.op_type for node in found.graph.nodes].count("DequantizeLinear") == 2


def relu(**kwargs: Any) -> onnx.ModelProto:
    return small([helper.make_node("Relu", ["x"], ["y"], name="r")], {}, **kwargs)


def add(value: np.ndarray, operator: str = "Add") -> onnx.ModelProto:
    return small([helper.make_node(operator, ["x", "w"], ["y"], name="sum")], {"w": value})


def cyclic() -> onnx.ModelProto:
    return small([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="r"),
                  helper.make_node("Relu", ["b"], ["y"])], {})  # fmt: skip


def nested(depth: int) -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "g", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
        del node.attribute[1:]
        del inner.node[:]
        inner.node.append(node)
    model = relu()
    model.graph.node.extend(inner.node)
    return model


def recursive() -> onnx.ModelProto:
    model = small([helper.make_node("Twice", ["x"], ["y"], domain="com.example")], {})
    call = helper.make_node("Twice", ["a"], ["b"], domain="com.example")
    function = helper.make_function("com.example", "Twice", ["a"], ["b"], [call], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    return model


def wrong_size() -> onnx.ModelProto:
    model = add(np.ones(4, np.float32))
    model.graph.initializer[0].dims[0] = 1 << 40
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (b"", "empty"),
        (b"\x08\x08" + b"nonsense" * 9, "no ONNX model"),
        (relu().SerializeToString()[:-9], "damaged"),
        (add(np.array([1, np.nan, 1, 1], np.float32)), "'w'.*'sum'.*1 NaN"),
        (add(np.full((4, 4), np.inf, np.float32), "MatMul"), "'w'.*16 infinite"),
        (small([helper.make_node("Relu6", ["x"], ["y"], name="r")], {}), "'r'.*'Relu6'"),
        (small([helper.make_node("Magic", ["x"], ["y"], "m", domain="com.example")], {}), "'m'.*'Magic'.*com.example"),
        (small([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"w": np.ones((5, 4), np.float32)}), "MatMul"),
        (relu(opset=99), "operator sets"),
        (relu(ir=99), "IR version"),
        (relu().SerializeToString().replace(b"\x1a\x01r", b"\x1a\x01\xff"), "not UTF-8"),
        (cyclic(), "topologically sorted"),
        (nested(20), "nested"),
        (recursive(), "calls itself"),
        (wrong_size(), "'w'.*1099511627776"),
        (relu(shape=["batch", (1 << 63) - 1]), "'x'.*9223372036854775807"),
    ],
)
def test_what_is_no_good_model_is_refused(model: onnx.ModelProto | bytes, expected: str, tmp_path: Path) -> None:
    message = refused(model, tmp_path)
    assert re.search(expected, message), message


def test_an_infinite_mask_is_no_weight(tmp_path: Path) -> None:
    constants = {"bound": np.array(np.inf, np.float32), "low": np.array(0, np.float32)}
    model = small([helper.make_node("Clip", ["x", "low", "bound"], ["y"], name="c")], constants)
    # A Clip of the model's input is written as two.
    assert [node.op_type for node in imported(model, tmp_path).graph.nodes] == ["Max", "Min"]


def external(directory: Path, location: str, **entries: str) -> onnx.ModelProto:
    """A model whose one weight lies in `location`."""
    directory.mkdir(parents=True, exist_ok=True)
    model = add(np.arange(4, dtype=np.float32))
    tensor = model.graph.initializer[0]
    (directory / "weights.bin").write_bytes(b"\0" * 8 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "8", "length": "16", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return model


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_with_external_data(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "files" / "resnet"
    external(folder, "weights.bin")
    upload = tmp_path / "upload"
    upload.mkdir()
    archive = upload / f"model.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in folder.iterdir():
                opened.write(path, f"resnet/{path.name}")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "resnet")
    done = succeed("import", tmp_path / "out", {"model": upload})
    assert sorted(p.name for p in done.output.iterdir()) == ["model.onnx", "result.json", "signature.json"]
    found = compute(done.output / "model.onnx", {"x": np.zeros((2, 4), np.float32)})[0]
    np.testing.assert_array_equal(found, [[0, 1, 2, 3]] * 2)
    assert json.loads((done.output / "signature.json").read_text())["batched"] is True


@pytest.mark.parametrize(
    ("location", "entries", "expected"),
    [
        ("../weights.bin", {}, "without '..'"),
        ("/etc/passwd", {}, "without '..'"),
        ("C:\\weights.bin", {}, "without '..'"),
        ("a/../../weights.bin", {}, "without '..'"),
        ("link.bin", {}, "is a link"),
        ("linked/weights.bin", {}, "is a link"),
        ("absent.bin", {}, "not there"),
        ("weights.bin", {"offset": "9"}, "from byte 9"),
        ("weights.bin", {"offset": "-8"}, "from byte -8"),
        ("weights.bin", {"length": "4"}, "to be 4 bytes"),
        ("weights.bin", {"offset": "x"}, "no number"),
    ],
)
def test_external_data_stays_in_the_models_folder(
    location: str, entries: dict[str, str], expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    external(folder, location, **entries)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(WorkerError, match=expected) as raised:
        import_onnx(folder / "model.onnx", tmp_path, silent)
    assert raised.value.code == "INVALID_ARGUMENT"
    assert "'w'" in raised.value.message


def test_weights_beyond_one_file_are_refused_before_they_are_read(tmp_path: Path) -> None:
    model = external(tmp_path / "m", "weights.bin", offset="0", length=str(4 << 30))
    model.graph.initializer[0].dims[0] = 1 << 30
    (tmp_path / "m" / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "m" / "weights.bin").open("wb") as file:
        file.truncate(4 << 30)
    with pytest.raises(WorkerError, match=r"4\.29 GB") as raised:
        import_onnx(tmp_path / "m" / "model.onnx", tmp_path, silent)
    assert raised.value.code == "FAILED_PRECONDITION"


def test_the_stage_says_what_to_upload(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.txt").write_text("")
    error = run("import", tmp_path / "out", {"model": tmp_path / "model"}).error
    assert error["code"] == "INVALID_ARGUMENT"
    assert ".onnx" in error["message"]


def test_a_padding_with_zeros_before_a_pooling_stays_one_in_onnx_runtime(tmp_path: Path) -> None:
    net = Network((2, 4, 4))
    padded = net.node("Pad", ["input", net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)])
    pooled = net.node("MaxPool", [padded], kernel_shape=[3, 3], strides=[2, 2])
    found = imported(net.model({pooled: ["batch", 2, 2, 2]}), tmp_path)
    negative = -1 - np.random.default_rng(0).random((1, 2, 4, 4), np.float32)
    session = create_session(found.graph.to_model().SerializeToString())
    # Each window but the last one has some of the padding.
    windows = session.run(None, {"input": negative})[0]
    np.testing.assert_array_equal(windows[:, :, 0, :], 0)
    np.testing.assert_array_equal(windows[:, :, 1, 1], negative[:, :, 1:4, 1:4].max((2, 3)))


def test_a_graph_of_enormous_inputs_is_not_run(tmp_path: Path) -> None:
    shape = ["batch", 1 << 20, 1 << 10]
    found = imported(small([helper.make_node("Relu", ["x"], ["y"])], {}, shape=shape, out=shape), tmp_path)
    assert found.signature.batched
    assert "could not be tried" in found.facts["batch"]
