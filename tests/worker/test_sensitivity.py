"""sensitivity and layers: what each layer costs, which to exclude, and the comparison of a quantized graph by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from enginehouse_worker.calibration.table import CalibrationTable
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_json
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.layers.layer import alone, quantized_layers
from enginehouse_worker.layers.segments import cut, segment_model
from enginehouse_worker.quantization.exclusion import excluded_nodes, layer_names
from enginehouse_worker.quantization.model import Quantization
from enginehouse_worker.quantization.rules import DIALECTS
from enginehouse_worker.sensitivity.search import search
from enginehouse_worker.stages import calibrate, layers, quantize, sensitivity
from enginehouse_worker.stages.context import StageContext
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network, residual_classifier

SYNTHETIC = {"distribution": "normal", "samples": 12, "seed": 1}


def stage(module: Any, output: Path, inputs: dict[str, Path], **params: Any) -> tuple[dict[str, Any], list[str]]:
    """Runs a stage in this process; the messages of its progress come with the result."""
    output.mkdir()
    said: list[tuple[float, str]] = []
    context = StageContext(module.STAGE.name, inputs, output, params, lambda f, m: said.append((f, m)))
    result = module.run(context)
    assert [f for f, _ in said] == sorted(f for f, _ in said)
    return result, [message for _, message in said]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    onnx.save(residual_classifier(seed=3), str(directory / "model.onnx"))
    return directory


@pytest.fixture(scope="module")
def table(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("table") / "out"
    stage(calibrate, output, {"model": model}, synthetic=SYNTHETIC, method="max")
    return output


def outputs_of(model: onnx.ModelProto, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, batch)[0] for batch in batches]).astype(np.float64)


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - actual) ** 2).sum()))


def samples(model: Path) -> list[dict[str, np.ndarray]]:
    from enginehouse_worker.datasets import open_dataset
    from enginehouse_worker.graphs.signature import model_signature

    return list(open_dataset(None, SYNTHETIC, model_signature(model, load_model(model)), None).batches(12))


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_each_layers_sqnr_is_that_of_the_whole_model_with_it_alone_quantized(
    dialect: str, model: Path, table: Path, tmp_path: Path
) -> None:
    inputs = {"model": model, "calibration": table}
    stage(
        sensitivity,
        tmp_path / "out",
        inputs,
        dialect=dialect,
        synthetic=SYNTHETIC,
        batch_size=5,
        max_layers=0,
        reduce_range="off",
    )
    report = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    graph = index_graph(load_model(model))
    quantization = Quantization(graph, DIALECTS[dialect], CalibrationTable.read(table), False)
    placement = quantization.place(frozenset())
    found = {layer.name: layer for layer in quantized_layers(graph, placement)}
    assert set(found) == {row["name"] for row in report["layers"]}
    assert {row["type"] for row in report["layers"]} >= {"Conv", "Gemm", "Add", "MaxPool"}
    batches = samples(model)
    expected = outputs_of(load_model(model), batches)
    for row in report["layers"]:
        only = quantization.model(alone(graph, placement, found[row["name"]].number))
        assert row["sqnr_db"] == pytest.approx(sqnr(expected, outputs_of(only, batches)), abs=0.02), row
        assert row["excluded"] is False
    assert [row["sqnr_db"] for row in report["layers"]] == sorted(row["sqnr_db"] for row in report["layers"])
    assert sum(row["noise_share"] for row in report["layers"]) == pytest.approx(1.0, abs=1e-4)
    assert report["excluded"] == [] and "message" not in report
    assert report["reached_sqnr_db"] == report["quantized_sqnr_db"]


def test_layers_are_excluded_until_the_quantized_model_is_good_enough(model: Path, table: Path, tmp_path: Path) -> None:
    inputs = {"model": model, "calibration": table}
    common = {"dialect": "tensorrt", "synthetic": SYNTHETIC}
    before, _ = stage(sensitivity, tmp_path / "before", inputs, **common, max_layers=0)
    wanted = before["quantized_sqnr_db"] + 4.0
    result, said = stage(sensitivity, tmp_path / "found", inputs, **common, minimum_sqnr_db=wanted, max_layers=10)
    assert result["reached_sqnr_db"] >= wanted
    assert 0 < len(result["excluded"]) < result["layers"]
    assert any("layer 1 of" in message for message in said)
    report = json.loads((tmp_path / "found" / "sensitivity.json").read_text())
    assert [row["name"] for row in report["layers"] if row["excluded"]] == report["excluded"]

    # quantize leaves the same layers alone, and its model has what was promised.
    done, _ = stage(quantize, tmp_path / "int8", {**inputs, "sensitivity": tmp_path / "found"}, dialect="tensorrt")
    assert done["automatically_excluded_nodes"] == done["excluded_nodes"] == len(report["excluded"])
    batches = samples(model)
    expected = outputs_of(load_model(model), batches)
    actual = outputs_of(load_model(tmp_path / "int8"), batches)
    assert sqnr(expected, actual) == pytest.approx(result["reached_sqnr_db"], abs=0.02)
    with pytest.raises(WorkerError, match="dialect"):
        stage(quantize, tmp_path / "other", {**inputs, "sensitivity": tmp_path / "found"}, dialect="onnxruntime")


def test_what_cannot_be_reached_is_still_a_result(model: Path, table: Path, tmp_path: Path) -> None:
    inputs = {"model": model, "calibration": table}
    result, _ = stage(
        sensitivity,
        tmp_path / "out",
        inputs,
        dialect="onnxruntime",
        synthetic=SYNTHETIC,
        minimum_sqnr_db=150.0,
        max_layers=3,
        exclude=["Gemm"],
    )
    assert result["reached_sqnr_db"] < 150.0
    assert len(result["excluded"]) <= 3
    assert "does not reach 150 dB" in result["message"]
    report = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert "Gemm" not in {row["type"] for row in report["layers"]}


@pytest.mark.parametrize(("dialect", "expected"), [("onnxruntime", ["second", "first"]), ("tensorrt", ["second"])])
def test_a_layer_that_reads_what_rounding_spoils_goes_with_the_layer_that_rounds(
    dialect: str, expected: list[str], tmp_path: Path
) -> None:
    """One channel between two convolutions is far larger than the others, and scaled down again behind them."""
    random = np.random.default_rng(0)
    kernels = [0.3 * random.standard_normal((8, 8, 3, 3)).astype(np.float32) for _ in range(3)]
    kernels[0][7] *= 1000
    kernels[1][:, 7] /= 1000
    nodes, value = [], "image"
    for name in ("first", "second", "third"):
        nodes.append(onnx.helper.make_node("Conv", [value, f"{name}_w"], [f"{name}_y"], name=name))
        nodes.append(onnx.helper.make_node("Relu", [f"{name}_y"], [f"{name}_z"], name=f"{name}_relu"))
        value = f"{name}_z"
    graph = onnx.helper.make_graph(
        nodes,
        "outlier",
        [onnx.helper.make_tensor_value_info("image", 1, ["n", 8, 8, 8])],
        [onnx.helper.make_tensor_value_info(value, 1, ["n", 8, 2, 2])],
        [onnx.numpy_helper.from_array(k, f"{n}_w") for n, k in zip(("first", "second", "third"), kernels, strict=True)],
    )
    (tmp_path / "model").mkdir()
    outlier = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(outlier, tmp_path / "model" / "model.onnx")
    inputs = {"model": tmp_path / "model"}
    stage(calibrate, tmp_path / "table", inputs, synthetic=SYNTHETIC, method="max")
    inputs["calibration"] = tmp_path / "table"
    stage(
        sensitivity,
        tmp_path / "out",
        inputs,
        dialect=dialect,
        synthetic=SYNTHETIC,
        minimum_sqnr_db=25.0,
        max_layers=2,
    )
    report = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert report["quantized_sqnr_db"] < 15 and report["reached_sqnr_db"] >= 25 and "message" not in report
    assert report["excluded"] == expected
    ratios = [layer["sqnr_db"] for layer in report["layers"]]
    assert ratios == sorted(ratios) and {row["name"] for row in report["layers"] if row["excluded"]} == set(expected)


def test_a_damaged_report_is_refused(model: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    write_json(tmp_path / "bad" / "sensitivity.json", {"dialect": "tensorrt", "excluded": [3]})
    inputs = {"model": model, "calibration": table, "sensitivity": tmp_path / "bad"}
    with pytest.raises(WorkerError, match="malformed"):
        stage(quantize, tmp_path / "out", inputs, dialect="tensorrt")


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_layers_compares_in_the_graph_and_alone(dialect: str, model: Path, table: Path, tmp_path: Path) -> None:
    stage(quantize, tmp_path / "int8", {"model": model, "calibration": table}, dialect=dialect, exclude=["Gemm"])
    stage(
        layers, tmp_path / "layers", {"model": model, "quantized": tmp_path / "int8"}, synthetic=SYNTHETIC, batch_size=5
    )
    report = json.loads((tmp_path / "layers" / "layers.json").read_text())
    rows = report["layers"]
    nodes = load_model(model).graph.node
    order = {node.name: number for number, node in enumerate(nodes)}
    assert [row["name"] for row in rows] == sorted((row["name"] for row in rows), key=order.__getitem__)
    assert {row["type"] for row in rows} >= {"Conv", "Add", "MaxPool", "Gemm"}
    # The first convolution reads the input, so both comparisons are the same; noise gathers on the way to the last.
    convolutions = [row for row in rows if row["type"] == "Conv"]
    assert convolutions[0]["sqnr_db"] == pytest.approx(convolutions[0]["own_sqnr_db"], abs=0.01)
    assert convolutions[-1]["sqnr_db"] < convolutions[-1]["own_sqnr_db"]
    assert all(0.9 < row["cosine"] <= 1.0 for row in rows)
    batches = samples(model)
    last = next(row for row in rows if row["type"] == "Gemm")
    expected = outputs_of(load_model(model), batches)
    assert last["sqnr_db"] == pytest.approx(
        sqnr(expected, outputs_of(load_model(tmp_path / "int8"), batches)), abs=0.02
    )
    if dialect == "tensorrt":
        assert "own_sqnr_db" not in last


def test_layers_of_another_model_are_refused(model: Path, table: Path, tmp_path: Path) -> None:
    net = Network((3, 16, 16))
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(net.model({net.head(net.conv("input", 4), 5): ["batch", 5]}), str(other / "model.onnx"))
    stage(quantize, tmp_path / "int8", {"model": model, "calibration": table}, dialect="tensorrt")
    with pytest.raises(WorkerError, match="not made of this model"):
        stage(layers, tmp_path / "out", {"model": other, "quantized": tmp_path / "int8"}, synthetic=SYNTHETIC)
    with pytest.raises(WorkerError, match="no quantized layer"):
        stage(layers, tmp_path / "out2", {"model": model, "quantized": model}, synthetic=SYNTHETIC)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.lists(st.integers(0, 12), min_size=1, unique=True).map(sorted))
def test_segments_run_one_after_the_other_are_the_model(count: int, numbers: list[int]) -> None:
    proto = residual_classifier(seed=1, size=8)
    graph = index_graph(proto)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    values = {"input": images}
    segments = cut(graph, numbers, count)
    assert len(segments) <= count
    assert [s.begin for s in segments[1:]] == [s.end for s in segments[:-1]]
    for segment in segments:
        part = segment_model(graph, segment).SerializeToString()
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        feeds = {name: values[name] for name in segment.inputs}
        values.update(zip(segment.outputs, session.run(list(segment.outputs), feeds), strict=True))
    expected = outputs_of(proto, [{"input": images}])
    np.testing.assert_allclose(values[graph.outputs[0]], expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60),
    st.floats(0.3, 3.0),
    st.floats(0.001, 2.0),
    st.integers(0, 60),
)
def test_the_search_finds_the_least_number_that_reaches(
    noises: list[float], factor: float, part: float, limit: int
) -> None:
    noises = sorted(noises, reverse=True)
    target = part * sum(noises)
    tried: list[int] = []

    def measure(count: int) -> float:
        assert count <= limit and count not in tried
        tried.append(count)
        return factor * sum(noises[count:])

    found = search(noises, factor * sum(noises), target, limit, measure)
    enough = [c for c in range(min(limit, len(noises)) + 1) if factor * sum(noises[c:]) <= target]
    assert found.reached == bool(enough)
    assert found.count == (enough[0] if enough else min(limit, len(noises)))
    assert found.ratio == factor * sum(noises[found.count :])
    assert len(tried) <= 14


def test_nodes_without_a_name_of_their_own_are_called_by_their_output() -> None:
    net = Network((4, 8, 8))
    out = net.head(net.conv(net.conv("input", 4), 4), 3)
    for node in net.nodes[:2]:
        node.name = "twice"
    net.nodes[2].name = ""
    graph = index_graph(net.model({out: ["batch", 3]}))
    names = layer_names(graph)
    assert len(set(names)) == len(names)
    for number, name in enumerate(names):
        assert excluded_nodes(graph, [name]) == {number}
