"""Plans are pure: the graph, its keys, and what changes them."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from enginehouse_optimizer.pipeline.backends import BACKENDS, QUANTIZED, backends_with, takes_table
from enginehouse_optimizer.pipeline.inputs import (
    Calibration,
    Data,
    Inputs,
    ModelInput,
    Synthetic,
    Target,
    Verification,
)
from enginehouse_optimizer.pipeline.machine import machine_facts
from enginehouse_optimizer.pipeline.plan import Output, Upload
from enginehouse_optimizer.pipeline.planner import environments_of, make_plan
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
VERSIONS = {"onnxruntime": "o1", "tensorflow": "t1", "tensorrt": "r1", "tf-trt": "f1"}
SYNTHETIC = Data(synthetic=Synthetic())
DATASET = Data("projects/p/datasets/d", "sha256:" + "d" * 64)
MODEL = ModelInput("projects/p/models/m", "sha256:" + "a" * 64, "sha256:" + "a" * 64, "model.keras")
BASE = Inputs(
    model=MODEL,
    targets=(Target("onnxruntime", "FP32"), Target("onnxruntime", "INT8"), Target("tensorflow", "FP32")),
    verification=Verification(DATASET),
    calibration=Calibration("entropy", DATASET),
)

data = st.sampled_from([SYNTHETIC, DATASET, Data(synthetic=Synthetic("uniform", 8, 3))])
targets = st.lists(
    st.sampled_from([Target(b.name, p) for b in BACKENDS.values() for p in sorted(b.precisions)]),
    min_size=1,
    max_size=5,
    unique_by=lambda t: (t.backend, t.precision),
).map(tuple)
requests = st.builds(
    Inputs,
    model=st.sampled_from(
        [MODEL, ModelInput("projects/p/models/z", "sha256:1", architecture="vgg16", seed=3, format="zoo")]
    ),
    targets=targets,
    verification=st.builds(Verification, data, st.integers(0, 9), st.floats(0, 1), st.floats(-200, 200)),
    calibration=st.builds(
        Calibration, st.sampled_from(["entropy", "max"]), data, exclude=st.sampled_from([(), ("Gemm",)])
    ),
    layout=st.sampled_from(["keep", "nchw"]),
)


@given(requests)
def test_every_plan_is_a_graph_in_order(inputs: Inputs) -> None:
    plan = make_plan(inputs, VERSIONS)
    seen: set[str] = set()
    for stage in plan.stages:
        assert set(stage.needs) <= seen, "each stage comes after those it needs"
        assert stage.name not in seen
        seen.add(stage.name)
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)
    assert len(plan.engines) == len(inputs.targets)
    for engine, target in zip(plan.engines, inputs.targets, strict=True):
        assert plan.stage(engine.verify).inputs["engine"] == Output(engine.build)
        lineage = {stage.stage for stage in plan.lineage(engine.build)}
        assert ("quantize" in lineage) == ("calibrate" in lineage) == takes_table(target.backend, target.precision)
        assert ("convert" in lineage) == (BACKENDS[target.backend].builds_from == "convert")
    if not any(takes_table(target.backend, target.precision) for target in inputs.targets):
        assert "calibrate" not in seen
    assert set(environments_of(inputs)) == {stage.environment for stage in plan.stages}


@given(requests)
def test_inputs_survive_a_restart(inputs: Inputs) -> None:
    again = Inputs.from_json(inputs.to_json())
    assert again == inputs
    assert make_plan(again, VERSIONS) == make_plan(inputs, VERSIONS)


def test_the_stages_of_a_request() -> None:
    plan = make_plan(BASE, VERSIONS)
    assert {stage.name for stage in plan.stages} == {
        "freeze", "convert", "calibrate", "reference", "quantize onnxruntime",
        "build onnxruntime fp32", "build onnxruntime int8", "build tensorflow fp32",
        "verify onnxruntime fp32", "verify onnxruntime int8", "verify tensorflow fp32",
    }  # fmt: skip
    assert plan.stage("freeze").inputs == {"model": Upload(MODEL.blob, "model.keras")}
    assert plan.stage("build tensorflow fp32").inputs == {"model": Output("freeze")}
    assert plan.stage("build onnxruntime fp32").inputs == {"model": Output("convert")}
    assert plan.stage("build onnxruntime int8").inputs == {"model": Output("quantize onnxruntime")}
    assert plan.stage("reference").inputs["dataset"] == Upload(DATASET.blob, "data.npz")
    assert plan.engines[1].id.startswith("m-onnxruntime-int8-")


def keys(inputs: Inputs, versions: dict[str, str] = VERSIONS) -> dict[str, str]:
    plan = make_plan(inputs, versions)
    found = {stage.name: stage.key for stage in plan.stages}
    return {**found, **{engine.id.rsplit("-", 1)[0]: engine.key for engine in plan.engines}}


def changed(inputs: Inputs, versions: dict[str, str] = VERSIONS) -> set[str]:
    before, after = keys(BASE), keys(inputs, versions)
    assert set(before) == set(after)
    return {name for name in before if before[name] != after[name]}


QUANTIZATION = {
    "calibrate", "quantize onnxruntime", "build onnxruntime int8", "verify onnxruntime int8", "m-onnxruntime-int8",
}  # fmt: skip


def test_what_changes_which_keys() -> None:
    assert changed(BASE) == set()
    everything = set(keys(BASE))
    assert changed(replace(BASE, model=replace(MODEL, blob="sha256:" + "b" * 64))) == everything
    calibration = BASE.calibration
    assert calibration is not None
    assert changed(replace(BASE, calibration=replace(calibration, method="max"))) == QUANTIZATION
    assert changed(replace(BASE, calibration=replace(calibration, exclude=("Gemm",)))) == QUANTIZATION - {"calibrate"}
    layout = changed(replace(BASE, layout="nchw"))
    assert not layout & {"freeze", "build tensorflow fp32"} and "m-onnxruntime-fp32" in layout
    tensorflow = changed(BASE, {**VERSIONS, "tensorflow": "t2"})
    assert tensorflow == everything
    assert not changed(BASE, {**VERSIONS, "onnxruntime": "o2"}) & {"freeze", "convert", "build tensorflow fp32"}
    profile = replace(BASE, targets=(replace(BASE.targets[0], profile=(1, 1, 1)), *BASE.targets[1:]))
    assert changed(profile) == {"build onnxruntime fp32", "verify onnxruntime fp32", "m-onnxruntime-fp32"}
    options = replace(BASE, targets=(replace(BASE.targets[0], options={"spinning": "false"}), *BASE.targets[1:]))
    assert changed(options) == changed(profile)


def test_limits_of_verification_do_not_make_another_engine() -> None:
    strict = replace(BASE, verification=replace(BASE.verification, minimum_sqnr_db=30.0))
    assert changed(strict) == {name for name in keys(BASE) if name.startswith("verify")}


def test_what_an_engine_is_verified_on_does_not_make_another_engine() -> None:
    other = changed(replace(BASE, verification=Verification(SYNTHETIC)))
    assert other == {"reference"} | {name for name in keys(BASE) if name.startswith("verify")}


def test_the_machine_matters_where_its_kind_changes_the_result() -> None:
    assert changed(BASE, {**VERSIONS, "gpu": '["H200"]'}) == set()
    assert changed(BASE, {**VERSIONS, "cpu": '["avx512_vnni"]'}) == QUANTIZATION - {"calibrate"}
    plan, other = (
        make_plan(replace(BASE, targets=(Target("tensorrt", "FP32"),)), {**VERSIONS, "gpu": gpu})
        for gpu in ("A100", "H200")
    )
    assert plan.engines[0].key != other.engines[0].key
    assert plan.stage("convert").key == other.stage("convert").key


def test_the_machine_is_read_from_proc(tmp_path: Path) -> None:
    assert machine_facts(tmp_path, lambda: ([], "")) == {"cpu": "[]", "gpu": "[]", "driver": ""}
    sandboxed = machine_facts(tmp_path, lambda: (["NVIDIA H200"], "580.159.03"))
    assert sandboxed == {"cpu": "[]", "gpu": '["NVIDIA H200"]', "driver": "580.159.03"}
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx512_vnni sse2\nflags: avx_vnni\n")
    for place, model in enumerate(("NVIDIA H200", "NVIDIA A100", "NVIDIA H200")):
        folder = tmp_path / "driver" / "nvidia" / "gpus" / str(place)
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ: 3\n")
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.2.0\n"
    (tmp_path / "driver" / "nvidia" / "version").write_text(version)
    assert machine_facts(tmp_path) == {
        "cpu": '["avx512_vnni"]',
        "gpu": '["NVIDIA A100","NVIDIA H200"]',
        "driver": "580.65.06",
    }


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to compile the fake NVML library")
def test_nvml_names_the_gpus_where_proc_does_not(tmp_path: Path) -> None:
    source, library = ROOT / "tests" / "integration" / "telemetry" / "fake_nvml.c", tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    control = tmp_path / "control"
    control.write_text("count 2\ndriver 580.159.03\n0.name NVIDIA H200\n1.name NVIDIA H200\n")
    ask = "from enginehouse_optimizer.pipeline.nvml import gpus_and_driver; print(gpus_and_driver())"
    variables = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    for path, said in ((control, "(['NVIDIA H200'], '580.159.03')"), (tmp_path / "none", "([], '')")):
        variables["FAKE_NVML_CONTROL"] = str(path)
        done = subprocess.run([sys.executable, "-c", ask], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said


def test_a_models_name_is_no_part_of_a_key() -> None:
    renamed = replace(BASE, model=replace(MODEL, name="projects/p/models/other"))
    plan, other = make_plan(BASE, VERSIONS), make_plan(renamed, VERSIONS)
    assert [e.key for e in plan.engines] == [e.key for e in other.engines]
    assert [e.id for e in plan.engines] != [e.id for e in other.engines]


def test_targets_that_differ_only_in_profile_have_stages_of_their_own() -> None:
    twice = (Target("onnxruntime", "FP32"), Target("onnxruntime", "FP32", (1, 1, 1)))
    plan = make_plan(replace(BASE, targets=twice), VERSIONS)
    assert [engine.build for engine in plan.engines] == ["build onnxruntime fp32", "build onnxruntime fp32 #2"]
    assert plan.stage("build onnxruntime fp32 #2").stage == "build"


def test_int8_and_fp8_share_a_calibration() -> None:
    both = (Target("tensorrt", "INT8"), Target("tensorrt", "FP8"))
    plan = make_plan(replace(BASE, targets=both, verification=Verification(DATASET, per_layer=True)), VERSIONS)
    assert [stage.name for stage in plan.stages if stage.stage == "calibrate"] == ["calibrate"]
    int8, fp8 = plan.stage("quantize tensorrt"), plan.stage("quantize tensorrt fp8")
    assert fp8.params == {**int8.params, "format": "fp8"} and fp8.inputs == int8.inputs
    assert plan.stage("build tensorrt fp8").inputs == {"model": Output("quantize tensorrt fp8")}
    assert plan.stage("layers tensorrt fp8").inputs["quantized"] == Output("quantize tensorrt fp8")
    assert [(engine.calibrate, engine.blame is None) for engine in plan.engines] == [
        ("calibrate", False),
        ("calibrate", True),  # what layers cost is measured in INT8
    ]
    assert plan.engines[1].id.startswith("m-tensorrt-fp8-")


def test_tf_trt_calibrates_while_it_builds_and_its_key_follows_from_the_data() -> None:
    """Another backend's INT8 beside it is calibrated as ever; TF-TRT's FP16 takes no data."""
    targets = (Target("tf-trt", "INT8"), Target("tf-trt", "FP16"), Target("onnxruntime", "INT8"))
    inputs = replace(BASE, targets=targets, calibration=Calibration("entropy", DATASET, max_samples=100))
    plan = make_plan(inputs, VERSIONS)
    build = plan.stage("build tf-trt int8")
    assert build.environment == "tf-trt"
    assert build.inputs == {"model": Output("freeze"), "dataset": Upload(DATASET.blob, DATASET.file_name)}
    assert build.params["max_samples"] == 100
    assert plan.stage("build tf-trt fp16").inputs == {"model": Output("freeze")}
    assert "max_samples" not in plan.stage("build tf-trt fp16").params
    assert [engine.calibrate for engine in plan.engines] == [None, None, "calibrate"]
    assert plan.engines[0].blame is None
    other = make_plan(replace(inputs, calibration=Calibration("entropy", SYNTHETIC)), VERSIONS)
    assert other.stage("build tf-trt int8").params["synthetic"] == vars(SYNTHETIC.synthetic)
    assert [mine.key == its.key for mine, its in zip(plan.engines, other.engines, strict=True)] == [False, True, False]


def test_the_options_of_tf_trt_are_the_workers() -> None:
    source = (ROOT / "worker" / "enginehouse_worker" / "backends" / "tftrt" / "options.py").read_text()
    found = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUILD_OPTIONS"
    )
    threads = {"intra_op_threads", "inter_op_threads"}
    assert set(BACKENDS["tf-trt"].options) == {*found, *threads}
    assert set(BACKENDS["tensorflow"].options) == {*threads, "tf32"}


def test_the_options_of_tensorrt_are_the_workers() -> None:
    source = ROOT / "worker" / "enginehouse_worker" / "backends" / "tensorrt" / "options.py"
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Tuple)
    }
    assert set(BACKENDS["tensorrt"].options) == {*assigned["BUILD_OPTIONS"], *assigned["LOAD_OPTIONS"]}


def test_the_table_of_backends() -> None:
    assert backends_with("INT8") == ["onnxruntime", "tensorrt", "tf-trt"]
    for backend in BACKENDS.values():
        assert backend.dialect or backend.calibrates or not (backend.precisions & QUANTIZED)
        assert not (backend.dialect and backend.calibrates)
