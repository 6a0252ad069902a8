"""preprocess: the graph takes UINT8 pixels and does what NumPy would do to them first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.backends.base import Signature
from enginehouse_worker.conversion.preprocessing import fold_preprocessing
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import EditableGraph, editable
from enginehouse_worker.graphs.signature import graph_signature
from networks import Network
from stages import run, succeed

IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE = Preprocessing((103.939, 116.779, 123.68), (1.0,), bgr=True)
INCEPTION = Preprocessing((127.5,), (127.5,))
BOTH = Preprocessing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr=True)


def network(layout: str, *, straight: bool = True) -> onnx.ModelProto:
    """A padded convolution of the image; with `straight` False, something else reads the image too."""
    net = Network((3, 12, 12) if layout == "nchw" else (12, 12, 3))
    image = "input"
    if layout == "keep":
        image = net.node("Transpose", ["input"], perm=[0, 3, 1, 2])
    net.channels[image] = 3
    x = net.conv(image, 4)
    if not straight:
        x = net.node("Concat", [x, net.node("Relu", [image])], axis=1)
        net.channels[x] = 7
    return net.model({net.head(x, 5): ["batch", 5]})


def folded(model: onnx.ModelProto, wanted: Preprocessing) -> tuple[EditableGraph, Signature]:
    graph = editable(model)
    return graph, fold_preprocessing(graph, graph_signature(model), wanted)


def compute(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": value})[0])


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("layout", ["nchw", "keep"])
@pytest.mark.parametrize("wanted", [IMAGENET, CAFFE, INCEPTION, BOTH, Preprocessing()])
def test_it_is_what_numpy_does(wanted: Preprocessing, layout: str, straight: bool) -> None:
    model = network(layout, straight=straight)
    graph, signature = folded(model, wanted)
    spec = signature.inputs[0]
    assert (spec.name, spec.dtype, spec.shape) == ("input", "UINT8", (-1, 12, 12, 3))
    made = graph.to_model()
    onnx.checker.check_model(made, full_check=True)
    assert graph_signature(made) == signature
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    values = wanted.apply(pixels)
    feed = np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if layout == "nchw" else values
    before, after = compute(model, feed), compute(made, pixels)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    operators = [node.op_type for node in graph.nodes]
    assert operators.count("Transpose") == 1
    if straight:
        assert not {"Gather", "Mul"} & set(operators)
    assert ("Sub" in operators) == any(wanted.mean)


def test_the_stage_writes_the_signature(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    onnx.save(network("nchw"), str(tmp_path / "model" / "model.onnx"))
    inputs = {"model": tmp_path / "model"}
    preprocessing = {"mean": [127.5], "deviation": [127.5], "bgr": True}
    done = succeed("preprocess", tmp_path / "out", inputs, preprocessing=preprocessing)
    signature = json.loads((done.output / "signature.json").read_text())
    assert signature["inputs"] == [{"name": "input", "dtype": "UINT8", "shape": [-1, 12, 12, 3]}]
    assert signature["batched"] is True
    assert run("preprocess", tmp_path / "bad", inputs).error["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((7,), "0 image inputs"), ((8, 12, 12), "0 image inputs"), ((3, 12, 3), "first or last")],
)
def test_models_without_one_image_input_are_refused(shape: tuple[int, ...], expected: str) -> None:
    net = Network(shape)
    model = net.model({net.node("Relu", ["input"]): ["batch", *shape]})
    with pytest.raises(WorkerError, match=expected):
        folded(model, INCEPTION)


def test_values_for_other_channels_are_refused() -> None:
    with pytest.raises(WorkerError, match="2 values for images of 3 channels"):
        folded(network("nchw"), Preprocessing((1.0, 2.0)))
