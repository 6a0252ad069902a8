"""The TensorRT builder, run for real on machines without a GPU: TensorRT for RTX parses and builds there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.backends.registry import get
from enginehouse_worker.backends.tensorrt.builder import set_options
from enginehouse_worker.backends.tensorrt.library import open_library
from enginehouse_worker.backends.tensorrt.opsets import raise_opset
from enginehouse_worker.backends.tensorrt.options import build_options
from enginehouse_worker.conversion.preprocessing import fold_preprocessing
from enginehouse_worker.data.preprocessing import Preprocessing
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_json
from enginehouse_worker.graphs.editing import editable
from enginehouse_worker.graphs.index import index_graph, load_model
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.quantization.insert import FP8_OPSET, insert
from enginehouse_worker.quantization.placement import place
from enginehouse_worker.quantization.rules import TENSORRT, TENSORRT_FP8
from enginehouse_worker.quantization.scales import LARGEST, symmetric_scale
from networks import Network, residual_classifier
from onnx import TensorProto, helper, numpy_helper
from stages import run, succeed
from transformer import encoder

HERE = {"compute_capability": "8.9"}
PROFILE = BatchProfile(1, 4, 8)


def quantized(model: onnx.ModelProto, precision: str = "INT8") -> onnx.ModelProto:
    dialect, form = (TENSORRT, "int8") if precision == "INT8" else (TENSORRT_FP8, "fp8")
    if precision == "FP8":
        raised = editable(model)
        raise_opset(raised, FP8_OPSET)
        model = raised.to_model()
    graph = index_graph(model)
    placement = place(graph, dialect)
    scales = {t: symmetric_scale(4.0, LARGEST[form]) for t in placement.range_of}
    return insert(graph, placement, dialect, scales, largest_weight=LARGEST[form])


def write(directory: Path, model: onnx.ModelProto) -> Path:
    """A stage's output: the model and its signature."""
    directory.mkdir()
    onnx.save(model, str(directory / "model.onnx"))
    write_json(directory / "signature.json", model_signature(directory, model).to_json())
    return directory


def build(directory: Path, model: onnx.ModelProto, precision: str = "FP32", **options: Any) -> dict[str, Any]:
    output = directory / f"{precision.lower()}-engine"
    output.mkdir()
    source = write(directory / f"{precision.lower()}-model", model)
    chosen = {**HERE, **options}
    return get("tensorrt").build(source, output, precision=precision, profile=PROFILE, options=chosen)


def refusal(directory: Path, model: onnx.ModelProto, precision: str = "FP32", **options: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        build(directory, model, precision, **options)
    return caught.value


def one_node(op_type: str, *constants: np.ndarray, shape: tuple[Any, ...] = ("batch", 4, 8, 8)) -> onnx.ModelProto:
    names = [f"c{i}" for i in range(len(constants))]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node(op_type, ["r", *names], ["y"], name="culprit"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("precision", ["FP32", "TF32", "FP16", "BF16", "INT8", "FP8"])
def test_every_precision_builds_without_a_gpu(tmp_path: Path, precision: str) -> None:
    model = residual_classifier()
    engine = build(tmp_path, quantized(model, precision) if precision in ("INT8", "FP8") else model, precision)
    output = tmp_path / f"{precision.lower()}-engine"
    assert json.loads((output / "engine.json").read_text()) == engine
    assert engine["device"] == {"kind": "gpu", "product": "any", "compute_capability": "8.9"}
    assert engine["trial"] == "not run: no GPU"
    assert engine["strongly_typed"] is True
    assert engine["precision"] == precision
    assert (output / "model.plan").stat().st_size > 10_000
    # TensorRT for RTX measures nothing at build time, and no plan can be inspected without a GPU.
    assert sorted(path.name for path in output.iterdir()) == ["engine.json", "model.plan"]


def test_a_plan_holds_16_bit_weights_in_fp16_and_8_bit_ones_in_int8(tmp_path: Path) -> None:
    net = Network((64, 4, 4))
    x = "input"
    for _ in range(6):
        x = net.conv(x, 128)
    model = net.model({x: ["batch", 128, 4, 4]})
    sizes = []
    for precision in ("FP32", "FP16", "INT8"):
        build(tmp_path, quantized(model) if precision == "INT8" else model, precision)
        sizes.append((tmp_path / f"{precision.lower()}-engine" / "model.plan").stat().st_size)
    weights = 4 * sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    # Code comes on top of weights.
    assert sizes[0] > weights
    assert sizes[0] - sizes[1] > 0.4 * weights
    assert sizes[1] - sizes[2] > 0.15 * weights


def test_options_reach_tensorrt() -> None:
    library = open_library()
    builder = library.trt.Builder(library.logger)

    def config(**options: str) -> Any:
        made = builder.create_builder_config()
        set_options(library, made, build_options({**HERE, **options}))
        return made

    workspace = library.trt.MemoryPoolType.WORKSPACE
    untouched, own = config(), builder.create_builder_config()
    for made in (untouched, own):
        assert made.builder_optimization_level == own.builder_optimization_level
        assert made.max_aux_streams == own.max_aux_streams
    for level in ("0", "5"):
        assert config(optimization_level=level).builder_optimization_level == int(level)
    for streams in ("0", "7"):
        assert config(aux_streams=streams).max_aux_streams == int(streams)
    assert config(workspace_mib="96").get_memory_pool_limit(workspace) == 96 << 20
    # Versions before 8.6 have neither.
    old = SimpleNamespace()
    for name in ("optimization_level", "aux_streams"):
        with pytest.raises(WorkerError, match=r"TensorRT 8\.6 and later") as caught:
            set_options(library, old, build_options({name: "1"}))
        assert caught.value.code == "FAILED_PRECONDITION"


def test_a_transformer_with_dynamic_lengths_builds_with_a_range(tmp_path: Path) -> None:
    engine = build(
        tmp_path, encoder(layers=1), "FP16", shapes="input_ids=4/16/32,attention_mask=4/16/32", profiles="1:1:1"
    )
    assert [p["max"] for p in engine["profiles"]] == [8, 1]


def test_the_stage_builds_and_says_what_with(tmp_path: Path) -> None:
    source = write(tmp_path / "model", residual_classifier())
    (tmp_path / "cache").mkdir()
    params = {"backend": "tensorrt", "precision": "fp16", "profile": {"min": 1, "opt": 4, "max": 8}, "options": HERE}
    done = succeed("build", tmp_path / "out", {"model": source, "timing_cache": tmp_path / "cache"}, **params)
    assert done.result["engine"]["backend_version"] == open_library().trt.__version__
    assert "tensorrt-rtx-cu13-bindings" in done.result["packages"]
    assert "timing_cache_bytes" not in done.result


@pytest.mark.parametrize("precision", ["FP16", "INT8"])
def test_an_image_input_of_bytes_builds(tmp_path: Path, precision: str) -> None:
    source = write(tmp_path / "model", residual_classifier())
    graph = editable(load_model(source))
    means = Preprocessing((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    fold_preprocessing(graph, model_signature(source, load_model(source)), means)
    model = graph.to_model()
    engine = build(tmp_path, quantized(model) if precision == "INT8" else model, precision)
    assert engine["inputs"] == [{"name": "input", "dtype": "UINT8", "shape": [-1, 16, 16, 3]}]


def test_without_a_gpu_a_compute_capability_must_be_named(tmp_path: Path) -> None:
    source = write(tmp_path / "model", residual_classifier())
    error = run("build", tmp_path / "out", {"model": source}, backend="tensorrt", precision="FP32").error
    assert error["code"] == "FAILED_PRECONDITION"


# What TensorRT does not take


def test_an_operator_that_it_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    error = refusal(tmp_path, one_node("Det"))
    assert error.code == "INVALID_ARGUMENT"
    assert "node 'culprit' (Det)" in error.message
    assert "does not have this operator" in error.message


def test_a_node_with_impossible_shapes_is_named_and_no_missing_gpu_is_blamed(tmp_path: Path) -> None:
    model = one_node("Reshape", np.array([3, 5], np.int64), shape=(2, 8))
    error = refusal(tmp_path, model)
    assert "node 'culprit' (Reshape)" in error.message
    assert "[2,8] to [3,5]" in error.message
    assert "cuda" not in error.message.lower()


def test_a_zero_point_is_refused_with_its_node(tmp_path: Path) -> None:
    model = quantized(residual_classifier())
    zero_point = next(t for t in model.graph.initializer if t.name == "input/zero_point")
    zero_point.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero_point.name))
    error = refusal(tmp_path, model, "INT8")
    assert "node 'input/QuantizeLinear' (QuantizeLinear)" in error.message
    assert "zero point" in error.message.lower()


def test_a_dynamic_dimension_needs_a_range(tmp_path: Path) -> None:
    error = refusal(tmp_path, encoder(layers=1))
    assert (error.code, "'input_ids'" in error.message, "shapes=input_ids=" in error.message) == (
        "INVALID_ARGUMENT",
        True,
        True,
    )


def test_a_range_must_fit_its_input(tmp_path: Path) -> None:
    error = refusal(tmp_path, residual_classifier(), shapes="input=3x8x8/3x16x16/3x16x16")
    assert error.code == "INVALID_ARGUMENT"
    assert "'input'" in error.message and "[3, 16, 16]" in error.message


def test_a_network_whose_input_is_not_as_its_signature_says_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "model", residual_classifier(size=16))
    onnx.save(residual_classifier(size=32), str(source / "model.onnx"))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        WorkerError, match=r"input 'input' takes \[-1, 3, 32, 32\], and the profile has \[1, 3, 16, 16\]"
    ):
        get("tensorrt").build(source, tmp_path / "out", precision="FP32", profile=PROFILE, options=HERE)


@pytest.mark.parametrize(
    ("precision", "given"),
    [("INT8", ""), ("FP8", ""), ("FP16", "INT8"), ("FP32", "INT8"), ("INT8", "FP8"), ("FP8", "INT8"), ("FP16", "FP8")],
)
def test_8_bits_want_their_own_pairs_and_nothing_else_does(tmp_path: Path, precision: str, given: str) -> None:
    model = residual_classifier()
    error = refusal(tmp_path, quantized(model, given) if given else model, precision)
    assert error.code == "INVALID_ARGUMENT"
    assert "Q/DQ" in error.message
    if precision in ("INT8", "FP8"):
        assert f"format {precision.lower()}" in error.message


def test_unknown_precisions_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, residual_classifier(), "INT4").code == "FAILED_PRECONDITION"


def test_fp8_is_refused_for_chips_without_it_and_built_for_newer_ones(tmp_path: Path) -> None:
    model = quantized(residual_classifier(), "FP8")
    (tmp_path / "old").mkdir()
    error = refusal(tmp_path / "old", model, "FP8", compute_capability="8.6")
    assert error.code == "FAILED_PRECONDITION"
    assert "compute capability 8.6 has no FP8; 8.9 and later have it" in error.message
    assert build(tmp_path, model, "FP8", compute_capability="12.0")["precision"] == "FP8"


def test_a_transformer_builds_in_fp8(tmp_path: Path) -> None:
    model = quantized(encoder(layers=1), "FP8")
    build(tmp_path, model, "FP8", shapes="input_ids=4/16/32,attention_mask=4/16/32")


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [("9.0", "FAILED_PRECONDITION", "7.5, 8.0, 8.6, 8.9, 12.0, 12.1"), ("ada", "INVALID_ARGUMENT", "such as 8.9")],
)
def test_a_compute_capability_that_it_does_not_know(tmp_path: Path, value: str, code: str, says: str) -> None:
    error = refusal(tmp_path, residual_classifier(), compute_capability=value)
    assert error.code == code
    assert says in error.message


@pytest.mark.parametrize("option", ["hardware_compatible", "version_compatible", "strip_weights"])
def test_what_tensorrt_for_rtx_lacks_is_said(tmp_path: Path, option: str) -> None:
    error = refusal(tmp_path, residual_classifier(), **{option: "true"})
    assert error.code == "FAILED_PRECONDITION"
    assert error.message.startswith("TensorRT for RTX 1.")
