"""Models and data of unusual kinds, from import to verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages import run as runner
from networks import Network
from onnx import TensorProto, helper

SYNTHETIC = {"distribution": "normal", "samples": 6, "seed": 1}


class Pipeline:
    """Runs stages in this process, one after the other."""

    def __init__(self, root: Path, model: onnx.ModelProto, data: dict[str, Any] | None = None) -> None:
        self.root = root
        self.made: dict[str, Path] = {}
        upload = root / "upload"
        upload.mkdir()
        (upload / "model.onnx").write_bytes(model.SerializeToString())
        self.stage("import", {"model": upload}, name="model")
        self.inputs: dict[str, Path] = {}
        self.params: dict[str, Any] = {"synthetic": SYNTHETIC}
        if data is not None:
            (root / "data").mkdir()
            np.savez(root / "data" / "data.npz", **data)
            self.inputs, self.params = {"dataset": root / "data"}, {}

    def stage(self, stage: str, inputs: dict[str, Path], name: str = "", **params: Any) -> dict[str, Any]:
        output = self.root / (name or stage)
        spec = {"stage": stage, "inputs": {k: str(v) for k, v in inputs.items()}, "output": str(output)}
        found = runner.load_stage(spec)
        runner.run(found, runner.context(found, {**spec, "params": params}, lambda fraction, message: None))
        self.made[name or stage] = output
        result: dict[str, Any] = json.loads((output / "result.json").read_text())
        return result

    def with_data(self, stage: str, inputs: dict[str, Path], **params: Any) -> dict[str, Any]:
        return self.stage(stage, {**inputs, **self.inputs}, **self.params, **params)

    def quantize(self, dialect: str = "onnxruntime", method: str = "entropy") -> dict[str, Any]:
        model = {"model": self.made["model"]}
        self.with_data("calibrate", model, method=method)
        return self.stage("quantize", {**model, "calibration": self.made["calibrate"]}, dialect=dialect)

    def verify(self, precision: str = "INT8", **gate: Any) -> dict[str, Any]:
        self.with_data("reference", {"model": self.made["model"]})
        model = self.made["quantize" if precision == "INT8" else "model"]
        self.stage("build", {"model": model}, backend="onnxruntime", precision=precision)
        done = self.with_data("verify", {"engine": self.made["build"], "reference": self.made["reference"]}, **gate)
        verification: dict[str, Any] = done["verification"]
        return verification

    def sensitivity(self, dialect: str = "onnxruntime") -> dict[str, Any]:
        inputs = {"model": self.made["model"], "calibration": self.made["calibrate"]}
        return self.with_data("sensitivity", inputs, dialect=dialect)

    def layers(self) -> list[dict[str, Any]]:
        self.with_data("layers", {"model": self.made["model"], "quantized": self.made["quantize"]})
        found: list[dict[str, Any]] = json.loads((self.made["layers"] / "layers.json").read_text())["layers"]
        return found


def made_of(net: Network, outputs: dict[str, tuple[int, list[int | str]]]) -> onnx.ModelProto:
    """A network whose outputs have types other than FP32."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *net.shape])
    graph = helper.make_graph(net.nodes, "test", [image], infos, net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_clip_of_the_models_input_and_of_a_layers(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    zero, six = net.constant(0.0), net.constant(6.0)
    net.channels[clipped := net.node("Clip", ["input", zero, six])] = 3
    x = net.conv(clipped, 4)
    net.channels[x := net.node("Clip", [x, zero, six])] = 4
    pipeline = Pipeline(tmp_path, net.model({net.head(net.conv(x, 4), 5): ["batch", 5]}))
    pipeline.quantize()
    assert pipeline.verify()["sqnr_db"] > 25
    assert pipeline.sensitivity()["layers"] == 4
    assert pipeline.layers()


def test_a_layer_that_makes_a_single_value(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    x = net.conv("input", 4)
    least = net.node("Greater", [net.node("ReduceSum", [x], keepdims=0), net.constant(-1e9)])
    y = net.node("Where", [least, x, net.constant(0.0)])
    net.channels[y] = 4
    pipeline = Pipeline(tmp_path, net.model({net.head(y, 5): ["batch", 5]}))
    pipeline.quantize()
    assert {row["type"] for row in pipeline.layers()} >= {"Conv", "ReduceSum"}


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_ranges_that_no_fp32_scale_fits_are_none(dialect: str, tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    faint = net.node("Mul", [net.conv("input", 4), net.constant(1e-38)])
    net.channels[faint] = 4
    pipeline = Pipeline(tmp_path, net.model({net.head(net.conv(faint, 4), 5): ["batch", 5]}))
    pipeline.quantize(dialect)
    table = json.loads((pipeline.made["calibrate"] / "calibration.json").read_text())["tensors"]
    assert [name for name, entry in table.items() if entry["amax"] == 0 and entry["max"] > 0] != []
    assert pipeline.sensitivity(dialect)["quantized_sqnr_db"] > 20


def test_text_outputs_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    scores = net.head(net.conv("input", 4), 3)
    best = net.node("ArgMax", [scores], axis=1, keepdims=0)
    net.constants.append(helper.make_tensor("names", TensorProto.STRING, [3], [b"cat", b"cow", b"dog"]))
    named = net.node("Gather", ["names", best])
    kinds = {named: (TensorProto.STRING, ["batch"]), scores: (TensorProto.FLOAT, ["batch", 3])}
    pipeline = Pipeline(tmp_path, made_of(net, kinds))
    pipeline.quantize()
    assert set(pipeline.verify()["outputs"]) == {scores}


def classifier() -> onnx.ModelProto:
    net = Network((3, 8, 8))
    return net.model({net.head(net.conv("input", 4), 7): ["batch", 7]})


def test_labels_are_counted_batch_by_batch(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((21, 3, 8, 8), np.float32)
    pipeline = Pipeline(tmp_path, classifier(), {"input": images, "labels": np.arange(21) % 7})
    pipeline.quantize()
    found = pipeline.verify()
    with np.load(pipeline.made["reference"] / "outputs.npz") as arrays:
        (scores,) = arrays.values()
    order = np.argsort(-scores, axis=1)
    right = order == (np.arange(21) % 7)[:, None]
    assert found["reference_top1"] == right[:, 0].mean()
    assert found["reference_top5"] == right[:, :5].any(axis=1).mean()
    assert found["labelled_samples"] == 21


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 7]), "has 7 classes"),
        (np.array([-1, 3]), "class index -1"),
        (np.array([1, 2**63 + 5], np.uint64), "class index 9223372036854775813"),
        (np.array(["cat", "dog"]), "integers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray, expected: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    pipeline = Pipeline(tmp_path, classifier(), {"input": images, "labels": labels})
    with pytest.raises(WorkerError, match="INVALID_ARGUMENT|" + expected) as raised:
        pipeline.verify("FP32")
    assert expected in raised.value.message


def test_a_reference_of_zeros_does_not_open_the_gate(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    out = net.head(net.node("Relu", [net.conv("input", 4)]), 5)
    loud = net.model({out: ["batch", 5]})
    pipeline = Pipeline(tmp_path, loud)
    pipeline.quantize()
    pipeline.with_data("reference", {"model": pipeline.made["model"]})
    np.savez(pipeline.made["reference"] / "outputs.npz", **{out: np.zeros((6, 5), np.float32)})
    pipeline.stage("build", {"model": pipeline.made["quantize"]}, backend="onnxruntime", precision="INT8")
    inputs = {"engine": pipeline.made["build"], "reference": pipeline.made["reference"]}
    with pytest.raises(WorkerError, match=r"-300\.00 dB"):
        pipeline.with_data("verify", inputs, minimum_sqnr_db=10.0)


def test_a_model_without_int8_operators_is_told_so(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    kernel = net.constant(net.random.standard_normal((3, 2, 2, 2)))
    out = net.node("ConvTranspose", ["input", kernel], strides=[2, 2])
    pipeline = Pipeline(tmp_path, net.model({out: ["batch", 2, 16, 16]}))
    with pytest.raises(WorkerError, match="build it in FP32"):
        pipeline.quantize()
    with pytest.raises(WorkerError, match="build it in FP32"):
        pipeline.sensitivity()


def test_a_fixed_batch_is_named(tmp_path: Path) -> None:
    model = classifier()
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    pipeline = Pipeline(tmp_path, model)
    with pytest.raises(WorkerError, match=r"'input' of shape \[4, 3, 8, 8\].*dynamic batch"):
        pipeline.quantize()


def test_samples_that_depend_on_each_other_are_named(tmp_path: Path) -> None:
    net = Network((3, 8, 8))
    mean = net.node("ReduceMean", ["input"], axes=[0], keepdims=1)
    net.channels[centred := net.node("Sub", ["input", mean])] = 3
    pipeline = Pipeline(tmp_path, net.model({net.head(net.conv(centred, 4), 5): ["batch", 5]}))
    with pytest.raises(WorkerError, match="depends on the others"):
        pipeline.quantize()
