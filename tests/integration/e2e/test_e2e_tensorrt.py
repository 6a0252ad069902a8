"""TensorRT engines beside ONNX Runtime's, from one calibration. TensorRT for RTX builds them here, without a GPU: what
cannot be run on this machine is published unverified, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import enginehouse
from real_stack import stack_with

from enginehouse import BatchProfile, Calibration, Client, Engine, Job, Synthetic, Target, VerificationSpec
from enginehouse.client.values import Model
from enginehouse.workers.environments import WorkerEnvironments

PROFILE = BatchProfile(1, 4, 8)
CALIBRATION = Calibration("max", synthetic=Synthetic(samples=8))
ADA = {"compute_capability": "8.9"}

# What the worker asks of a GPU before it loads an engine. Only those that serve find it: there is none here.
STAND_IN = """
from types import SimpleNamespace

def cudaSetDevice(index):
    return (0,)

def cudaGetDeviceProperties(index):
    return (0, SimpleNamespace(name=b"NVIDIA Stand-in", major=7, minor=5, totalGlobalMem=1 << 30))

def cudaDriverGetVersion():
    return (0, 13000)
"""
WORKER = """#!/bin/sh
case "$*" in *"enginehouse_worker serve"*) PYTHONPATH="{folder}:$PYTHONPATH"; export PYTHONPATH;; esac
exec "{python}" "$@"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = WorkerEnvironments.discover().installed.get("tensorrt-rtx")
    if found is None:
        pytest.skip("the worker environment tensorrt-rtx is not installed: make install-dev")
    folder = tmp_path_factory.mktemp("worker")
    (folder / "cuda" / "bindings").mkdir(parents=True)
    (folder / "cuda" / "bindings" / "runtime.py").write_text(STAND_IN)
    python = folder / "python"
    python.write_text(WORKER.format(folder=folder, python=found.python))
    python.chmod(0o755)
    variables = {"ENGINEHOUSE_WORKERS": json.dumps({"tensorrt": str(python)}), "ENGINEHOUSE_DEVICE": "cuda:0"}
    with stack_with(tmp_path_factory.mktemp("stack"), **variables) as path:
        yield path


@pytest.fixture(scope="module")
def model(client: Client, onnx_models: Path) -> Model:
    return client.models.upload(onnx_models / "colours.onnx")


def optimize(client: Client, model: Model, *targets: Target, per_layer: bool = False) -> tuple[Job, list[Engine]]:
    verification = VerificationSpec(per_layer=True) if per_layer else None
    job = client.optimize(model, list(targets), calibration=CALIBRATION, verification=verification)
    return job, job.result(180)


def states(job: Job) -> dict[str, str]:
    return {stage.name: stage.state for stage in job.metadata().stages}


def test_one_calibration_serves_every_backend_profile_and_device(client: Client, home: Path, model: Model) -> None:
    first, (onnx,) = optimize(client, model, Target("onnxruntime", "int8", PROFILE))
    assert states(first)["calibrate"] == "succeeded"
    second, engines = optimize(
        client,
        model,
        Target("tensorrt", "int8", PROFILE, ADA),
        Target("tensorrt", "int8", BatchProfile(1, 1, 1), {"compute_capability": "12.0"}),
        Target("tensorrt", "fp8", PROFILE, ADA),
        per_layer=True,
    )
    found = states(second)
    assert found["calibrate"] == found["import"] == found["reference"] == "reused", found
    assert found["quantize tensorrt"] == found["build tensorrt int8"] == found["quantize tensorrt fp8"] == "succeeded"
    assert {engine.calibration_digest for engine in engines} == {onnx.calibration_digest}
    for engine in engines:
        compared = client.engines.layers(engine)
        assert compared is not None and all(layer["sqnr_db"] > 10 for layer in compared["layers"])
    log = [json.loads(line) for line in (home / "logs" / "optimizer.log").read_text().splitlines()]
    started = [entry["stage"] for entry in log if entry.get("event") == "stage starts"]
    assert started.count("calibrate") == 1
    assert [(e.device.kind, e.device.product, e.device.compute_capability) for e in engines] == [
        ("gpu", "any", "8.9"),
        ("gpu", "any", "12.0"),
        ("gpu", "any", "8.9"),
    ]


def test_what_cannot_be_run_here_is_published_unverified(client: Client, home: Path, model: Model) -> None:
    _, (engine,) = optimize(client, model, Target("tensorrt", "int8", PROFILE, ADA))
    assert engine.verification is None
    measured = client.engines.manifest(engine)["verification"]
    assert measured["samples"] == 0 and "compute capability 8.9" in measured["not_verified"]
    assert client.engines.not_verified(engine) == measured["not_verified"]
    shown = enginehouse(home, "engines", "show", engine.id)
    assert f"{engine.id} is not verified: it was built for compute capability 8.9" in shown.stderr
    assert "no inspector.json" in enginehouse(home, "engines", "show", engine.id, "--layers").stderr
    # It travels as any other.
    bundle = client.engines.export_file(engine, home / "ada.engine")
    assert client.engines.import_file(bundle, model_id="elsewhere").verification is None


def test_an_engine_of_another_gpu_is_refused_with_both_named(client: Client, home: Path, model: Model) -> None:
    _, (engine,) = optimize(client, model, Target("tensorrt", "int8", PROFILE, ADA))
    refused = enginehouse(home, "load", "ada", engine.id, status=1).stderr
    for said in (
        "version 1 of ada did not load",
        "compute capability 8.9",
        "this GPU is NVIDIA Stand-in (7.5)",
        "enginehouse optimize MODEL --target tensorrt:int8 on a machine with that GPU",
    ):
        assert said in " ".join(refused.split()), refused
    served = enginehouse(home, "serving").stdout
    assert "this GPU is NVIDIA Stand-in (7.5)" in served and "on a machine with that GPU" in served
    enginehouse(home, "unload", "ada", "--no-wait")
