"""Profiles, the shapes option, build options, what fits which GPU, and the inspector's words: all without TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec
from enginehouse_worker.backends.tensorrt.cuda import DeviceFacts
from enginehouse_worker.backends.tensorrt.inspector import data_type, layers, parse
from enginehouse_worker.backends.tensorrt.options import BUILD_OPTIONS, LOAD_OPTIONS, build_options, load_options
from enginehouse_worker.backends.tensorrt.runtime import check_fits
from enginehouse_worker.backends.tensorrt.shapes import (
    batch_profiles,
    make_profiles,
    parse_shapes,
    profile_for,
    usual_shapes,
)
from enginehouse_worker.errors import WorkerError
from hypothesis import given
from hypothesis import strategies as st

BATCHES = st.lists(st.integers(1, 512), min_size=3, max_size=3).map(lambda v: BatchProfile(*sorted(v)))
DIMENSIONS = st.lists(st.integers(1, 64), min_size=1, max_size=3)
H200 = DeviceFacts(0, "NVIDIA H200", "9.0", "550.1", 1)
BUILT: dict[str, Any] = {
    "device": {"product": "NVIDIA H200", "compute_capability": "9.0"},
    "backend_version": "8.6.0",
    "precision": "INT8",
    "library": "tensorrt",
}


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "FP32", shape)


@given(BATCHES, st.lists(BATCHES, max_size=4))
def test_extra_profiles_are_kept_in_order_or_refused(own: BatchProfile, extra: list[BatchProfile]) -> None:
    text = ",".join(f"{p.min}:{p.opt}:{p.max}" for p in extra)
    if all(own.min <= p.min and p.max <= own.max for p in extra):
        assert batch_profiles(own, {"profiles": text}) == tuple(dict.fromkeys([own, *extra]))
    else:
        with pytest.raises(WorkerError, match="the batch sizes of the engine"):
            batch_profiles(own, {"profiles": text})


@given(st.lists(BATCHES, min_size=1, max_size=5), st.integers(1, 600))
def test_a_batch_goes_to_a_profile_that_holds_it(profiles: list[BatchProfile], batch: int) -> None:
    fitting = [p for p in profiles if p.min <= batch <= p.max]
    if not fitting:
        with pytest.raises(WorkerError, match=f"a batch of {batch}"):
            profile_for(batch, profiles)
        return
    chosen = profiles[profile_for(batch, profiles)]
    assert chosen in fitting
    # Among profiles whose usual batch is at least this one, the nearest.
    above = [p.opt for p in fitting if p.opt >= batch]
    assert chosen.opt == min(above) if above else chosen.opt == max(p.opt for p in fitting)


@given(BATCHES, DIMENSIONS, st.data())
def test_shapes_are_read_back_and_become_ranges(batch: BatchProfile, best: list[int], data: st.DataObject) -> None:
    low = [data.draw(st.integers(1, d)) for d in best]
    high = [data.draw(st.integers(d, 99)) for d in best]
    text = "ids=" + "/".join("x".join(map(str, shape)) for shape in (low, best, high))
    shapes = parse_shapes(text)
    assert shapes == {"ids": (tuple(low), tuple(best), tuple(high))}
    signature = Signature((spec("ids", -1, *(-1 for _ in best)), spec("image", -1, 3, 8)), (), True)
    (profile,) = make_profiles(signature, [batch], shapes)
    assert profile.inputs["ids"].min == (batch.min, *low)
    assert profile.inputs["ids"].opt == (batch.opt, *best)
    assert profile.inputs["ids"].max == (batch.max, *high)
    assert profile.inputs["image"].max == (batch.max, 3, 8)


def test_an_input_name_may_have_an_equals_sign() -> None:
    assert parse_shapes("a=b=1/2/3") == {"a=b": ((1,), (2,), (3,))}


@pytest.mark.parametrize("text", ["ids", "ids=1/2", "ids=1/2/x", "=1/2/3/4", "ids=1/-2/3"])
def test_shapes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(WorkerError, match="expected input=min/opt/max"):
        parse_shapes(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'ids' has dynamic dimensions"),
        ("other=1/2/3", "'other'; the model's inputs: ids"),
        ("ids=1/2/3", "takes [-1, 4] after the batch"),
        ("ids=1x3/2x4/3x4", "takes [-1, 4] after the batch"),
        ("ids=3x4/2x4/1x4", "min <= opt <= max"),
    ],
)
def test_a_range_that_does_not_fit_names_its_input(text: str, says: str) -> None:
    signature = Signature((spec("ids", -1, -1, 4),), (), True)
    with pytest.raises(WorkerError) as caught:
        make_profiles(signature, [BatchProfile(1, 2, 3)], parse_shapes(text))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert says in caught.value.message


def test_trials_use_the_usual_sizes_of_dynamic_dimensions() -> None:
    signature = Signature((spec("ids", -1, -1, 4), spec("image", -1, 3, 8)), (), True)
    (profile,) = make_profiles(signature, [BatchProfile(1, 2, 3)], parse_shapes("ids=4x4/16x4/32x4"))
    assert [i.shape for i in usual_shapes(signature, profile).inputs] == [(-1, 16, 4), (-1, 3, 8)]


def test_an_engine_without_a_batch_has_its_inputs_shapes() -> None:
    (profile,) = make_profiles(Signature((spec("x", 2, 3),), (), False), [BatchProfile(1, 8, 64)], {})
    assert profile.inputs["x"].min == profile.inputs["x"].max == (2, 3)


def test_options_are_checked() -> None:
    options = build_options({"optimization_level": "5", "compute_capability": "12.0", "cuda_graphs": "4"})
    assert (options.optimization_level, options.compute_capability) == (5, "12.0")
    assert load_options({"cuda_graphs": "4", "profiles": "1:1:1"}).cuda_graphs == 4
    bad = {"optimisation_level": "5", "workspace_mib": "-1", "strip_weights": "yes", "compute_capability": "sm89"}
    for name, value in bad.items():
        with pytest.raises(WorkerError, match=name):
            build_options({name: value})


def test_the_optimizer_knows_every_option() -> None:
    root = Path(__file__).resolve().parents[2]
    table = (root / "services/optimizer/enginehouse_optimizer/pipeline/backends.py").read_text()
    for name in (*BUILD_OPTIONS, *LOAD_OPTIONS):
        assert f'"{name}": "' in table, name


def fit(version: str = "8.6.0", module: str = "tensorrt", facts: DeviceFacts = H200, **changes: Any) -> str:
    """What the refusal says; empty when it fits."""
    try:
        check_fits({**BUILT, **changes}, module, version, facts)
    except WorkerError as error:
        assert error.code == "FAILED_PRECONDITION"
        return error.message
    return ""


def test_an_engine_fits_the_gpu_and_the_version_that_it_was_built_for() -> None:
    assert fit() == ""


def test_another_gpu_is_refused_with_both_named_and_the_command() -> None:
    said = fit(facts=DeviceFacts(0, "NVIDIA L4", "8.9", "550.1", 1))
    assert "NVIDIA H200 (compute capability 9.0)" in said and "NVIDIA L4 (8.9)" in said
    assert "enginehouse optimize MODEL --target tensorrt:int8" in said
    # The same capability is another GPU all the same.
    assert "NVIDIA H100" in fit(facts=DeviceFacts(0, "NVIDIA H100", "9.0", "550.1", 1))


def test_hardware_compatible_engines_run_on_ampere_and_later() -> None:
    for capability, fits in (("8.0", True), ("12.0", True), ("10.3", True), ("7.5", False)):
        said = fit(facts=DeviceFacts(0, "other", capability, "550.1", 1), hardware_compatible=True)
        assert (said == "") == fits


def test_an_engine_for_any_product_wants_its_compute_capability() -> None:
    device = {"product": "any", "compute_capability": "8.9"}
    assert fit(device=device, facts=DeviceFacts(0, "NVIDIA L4", "8.9", "550.1", 1)) == ""
    assert "8.9" in fit(device=device, facts=H200)


def test_another_version_or_library_is_refused_with_both_named() -> None:
    said = fit(version="10.3.0")
    assert "TensorRT 8.6.0" in said and "tensorrt 10.3.0" in said
    assert fit(version="8.6.1", version_compatible=True) == ""
    assert fit(version="10.3.0", version_compatible=True) != ""
    said = fit(module="tensorrt_rtx", version="8.6.0")
    assert "'tensorrt'" in said and "'tensorrt_rtx'" in said
    assert fit(module="tensorrt_bindings") == ""


def test_layers_have_one_format() -> None:
    """With detailed profiling a layer is an object, without it a name."""
    detailed = {
        "Layers": [
            {
                "Name": "conv1 + relu1",
                "LayerType": "CaskConvolution",
                "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}],
                "Outputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
                "TacticName": "sm80_xmma_fprop",
                "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: scope[0]/relu1]",
            },
            {"Name": "reformat", "LayerType": "Reformat", "Outputs": []},
        ]
    }
    assert layers(detailed)["layers"] == [
        {
            "name": "conv1 + relu1",
            "type": "CaskConvolution",
            "tactic": "sm80_xmma_fprop",
            "precision": "FP16",
            "nodes": ["conv1", "scope[0]/relu1"],
        },
        {"name": "reformat", "type": "Reformat", "nodes": []},
    ]
    assert layers({"Layers": ["conv1", "relu1"]}) == {"layers": [{"name": "conv1"}, {"name": "relu1"}]}
    assert layers({}) == {"layers": []}


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [  # of an H200's engines, TensorRT 8.6.0
        (
            "sm90_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
            "INT8",
        ),
        ("sm90_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_tilesize64x64x128", "INT8"),
        (
            "sm80_xmma_conv_fprop_smallk_i8i8_i32_f32_nchw_vect_c_32kcrs",
            "INT8",
        ),
        (
            "sm90_xmma_fprop_image_first_layer_f16f16_f32_f16_nhwckrsc_nhwc_hmma",
            "FP16",
        ),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64", "TF32"),
        ("ampere_scudnn_f32f32_f32_f32_tn_n", "FP32"),
        ("sm90_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x128", "FP8"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x128", "BF16"),
        ("sm50_xmma_pooling_coalescedC_NHWC_kMAX_3_False", ""),
        ("", ""),
    ],
)
def test_a_kernels_name_says_what_it_multiplies(tactic: str, expected: str) -> None:
    """8.6 gives no types of tensors in an engine of dynamic shapes, even with a context whose shapes are set."""
    (layer,) = layers({"Layers": [{"Name": "conv", "TacticName": tactic}]})["layers"]
    assert layer.get("precision", "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "FP32"),
        ("Half", "FP16"),
        ("BF16", "BF16"),
        ("Int64", "INT64"),
        ("N/A", ""),
    ],
)
def test_types_are_named_as_elsewhere(text: str, expected: str) -> None:
    assert data_type(text) == expected


def test_the_inspectors_control_characters_are_read() -> None:
    text = '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: x]\x1e[ONNX Layer: y]"}]}'
    assert layers(parse(text))["layers"][0]["nodes"] == ["x", "y"]
    with pytest.raises(ValueError, match="no object"):
        parse("[]")
