"""FP8 (E4M3) Q/DQ: where they stand, what they cost, and that ONNX and ONNX Runtime take them."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from enginehouse_worker.backends.onnxruntime.session import create_session
from enginehouse_worker.backends.tensorrt.folding import fold_weights, quantize
from enginehouse_worker.backends.tensorrt.precision import check_chip
from enginehouse_worker.backends.tensorrt.typing import to_half
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.editing import editable
from enginehouse_worker.graphs.index import index_graph
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import MATRIX_OPERATORS, TENSORRT_FP8
from networks import residual_classifier
from onnx import TensorProto, numpy_helper
from stages import run, succeed

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def compute(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
    # ONNX Runtime 1.23 fuses FP8 pairs into kernels for INT8, which then refuse them.
    session = create_session(model.SerializeToString(), integer_kernels=False)
    return np.asarray(session.run(None, {"input": value})[0])


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    noise = np.square(expected.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))


SYNTHETIC = {"distribution": "normal", "samples": 16, "seed": 0}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model, its table, and the model with INT8 and with FP8 Q/DQ from that table."""
    directory = tmp_path_factory.mktemp("fp8")
    (directory / "model").mkdir()
    onnx.save(residual_classifier(), str(directory / "model" / "model.onnx"))
    found = {"model": directory / "model"}
    found["calibration"] = succeed("calibrate", directory / "table", found, synthetic=SYNTHETIC, method="max").output
    inputs = dict(found)
    for form in ("int8", "fp8"):
        done = succeed("quantize", directory / form, inputs, dialect="tensorrt", format=form)
        assert done.result["format"] == form
        found[form] = done.output
    return found


@pytest.fixture(scope="module")
def quantized(directories: dict[str, Path]) -> dict[str, onnx.ModelProto]:
    return {form: onnx.load(str(directories[form] / "model.onnx")) for form in ("int8", "fp8")}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"dialect": "onnxruntime", "format": "fp8"}, "dialect tensorrt"),
        ({"dialect": "tensorrt", "format": "fp8", "reduce_range": "on"}, "reduce_range"),
        ({"dialect": "tensorrt", "format": "fp4"}, "fp8"),
    ],
)
def test_what_makes_no_sense_is_refused(
    directories: dict[str, Path], tmp_path: Path, bad: dict[str, str], says: str
) -> None:
    inputs = {name: directories[name] for name in ("model", "calibration")}
    error = run("quantize", tmp_path / "out", inputs, **bad).error
    assert (error["code"], says in error["message"]) == ("INVALID_ARGUMENT", True)


def test_each_fp8_layer_is_compared_with_fp32(directories: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"model": directories["model"], "quantized": directories["fp8"]}
    done = succeed("layers", tmp_path / "layers", inputs, synthetic=SYNTHETIC)
    layers = json.loads((done.output / "layers.json").read_text())["layers"]
    assert Counter(layer["type"] for layer in layers) == {"Conv": 6, "Gemm": 1}
    assert all(layer["sqnr_db"] > 20 and layer["own_sqnr_db"] > 25 for layer in layers)


def test_matrix_operators_alone_are_fp8(quantized: dict[str, onnx.ModelProto]) -> None:
    model = quantized["fp8"]
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 19
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert {op for node in pairs for op in readers[node.output[0]]} == {"Conv", "Gemm"}
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Conv"] == 6 and counts["Gemm"] == 1
    constants = {t.name: t for t in model.graph.initializer}
    assert {constants[node.input[2]].data_type for node in pairs} == {TensorProto.FLOAT8E4M3FN}


def test_scales_are_of_the_same_table(quantized: dict[str, onnx.ModelProto]) -> None:
    """FP8 reaches 448 where INT8 reaches 127."""
    scales = [
        {t.name: numpy_helper.to_array(t) for t in quantized[form].graph.initializer if t.name.endswith("/scale")}
        for form in ("int8", "fp8")
    ]
    assert 10 < len(scales[1]) < len(scales[0])
    for name, value in scales[1].items():
        np.testing.assert_allclose(value * 448, scales[0][name] * 127, rtol=1e-6, err_msg=name)


def test_fp8_costs_what_three_bits_of_mantissa_cost(quantized: dict[str, onnx.ModelProto]) -> None:
    images = np.random.default_rng(5).standard_normal((32, 3, 16, 16)).astype(np.float32)
    expected = compute(residual_classifier(), images)
    # A relative error of 2^-4 at most: about 30 dB for each operand. Random errors average out over the layers' sums.
    assert sqnr(expected, compute(quantized["fp8"], images)) > 22
    half = editable(quantized["fp8"])
    to_half(half, "FP8")
    typed = half.to_model()
    typed.ir_version = 9
    onnx.checker.check_model(typed, full_check=True)
    weights = [t for t in typed.graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN and len(t.dims) > 1]
    assert len(weights) == 7
    # The input is quantized as it comes, so the one Cast is the output's.
    assert Counter(node.op_type for node in typed.graph.node)["Cast"] == 1


@cache
def every_fp8_value() -> np.ndarray:
    values = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
    return values[np.isfinite(values)]


def test_folded_weights_are_the_nearest_fp8_values() -> None:
    value = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    scale = (np.abs(value).max(axis=1) / np.float32(448)).astype(np.float32)
    folded = quantize(value, scale, 0, FP8)
    assert folded.dtype == FP8
    wanted = value / scale[:, None]
    nearest = np.abs(every_fp8_value()[None, None] - wanted[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(folded.astype(np.float32) - wanted), nearest, atol=1e-5)
    # Rounding may carry the greatest beyond the range, where FP8 has only NaN.
    assert np.array_equal(quantize(np.array([500.0, -1e9]), np.array(1.0), 0, FP8).astype(np.float32), [448, -448])


def test_only_weights_are_folded(quantized: dict[str, onnx.ModelProto]) -> None:
    graph = editable(quantized["fp8"])
    before = Counter(node.op_type for node in graph.nodes)
    fold_weights(graph)
    after = Counter(node.op_type for node in graph.nodes)
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == 7
    assert before["DequantizeLinear"] == after["DequantizeLinear"]


def test_the_placement_knows_no_shortcuts_and_no_poolings() -> None:
    graph = index_graph(residual_classifier())
    placement = place(graph, TENSORRT_FP8)
    assert {graph.nodes[number].op_type for number in placement.nodes} == {"Conv", "Gemm"}
    assert "ConvTranspose" not in TENSORRT_FP8.operators and TENSORRT_FP8.operators < MATRIX_OPERATORS


@pytest.mark.parametrize(
    ("capability", "fits"), [("7.5", False), ("8.6", False), ("8.9", True), ("9.0", True), ("10.0", True)]
)
def test_fp8_wants_a_chip_that_has_it(capability: str, fits: bool) -> None:
    device = {"kind": "gpu", "product": "NVIDIA X", "compute_capability": capability}
    check_chip("INT8", device)
    if fits:
        check_chip("FP8", device)
        return
    with pytest.raises(WorkerError, match=rf"NVIDIA X of compute capability {capability}.*8\.9") as caught:
        check_chip("FP8", device)
    assert caught.value.code == "FAILED_PRECONDITION"
