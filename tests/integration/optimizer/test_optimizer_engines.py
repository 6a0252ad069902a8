"""The real thing: a small Keras network becomes FP32 and INT8 engines, in the real worker environments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from google.longrunning import operations_pb2
from keras_files import keras_file
from optimizer_process import FP32, INT8, ROOT, OptimizerProcess

from enginehouse.artifacts import EngineManifest
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse.workers.environments import WorkerEnvironments

# Random weights, but logits that differ between samples: strided convolutions instead of one average over noise.
MAKE_MODEL = """
import sys
import keras
keras.utils.set_random_seed(1)
layers = keras.layers
keras.Sequential([
    keras.Input((16, 16, 3), name="image"),
    layers.Conv2D(8, 3, strides=2, activation="relu"),
    layers.Conv2D(16, 3, strides=2, activation="relu"),
    layers.Flatten(),
    layers.Dense(10),
]).save(sys.argv[1])
"""


@pytest.fixture
def environments() -> WorkerEnvironments:
    found = WorkerEnvironments.discover()
    missing = [name for name in ("onnxruntime", "tensorflow") if name not in found.installed]
    if missing:
        pytest.skip(f"worker environments that are not installed: {', '.join(missing)}")
    return found


@pytest.fixture
def model_file(environments: WorkerEnvironments, pytestconfig: pytest.Config) -> bytes:
    return keras_file(pytestconfig, environments, MAKE_MODEL, "strided.keras").read_bytes()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_keras_model_becomes_engines(
    environments: WorkerEnvironments, model_file: bytes, start: Callable[..., OptimizerProcess]
) -> None:
    server = start(
        ENGINEHOUSE_WORKERS=json.dumps({name: str(found.python) for name, found in environments.installed.items()}),
        ENGINEHOUSE_ENVIRONMENT_STAGES='{"tensorflow": 2}',  # a network this small leaves room for two
        ENGINEHOUSE_WORKER_PATH=os.environ.get("ENGINEHOUSE_WORKER_PATH", str(ROOT / "worker")),
    )
    model = server.model(model_file)
    targets = [
        pb.EngineTarget(backend=backend, precision=precision)
        for backend, precision in (("onnxruntime", FP32), ("onnxruntime", INT8), ("tensorflow", FP32))
    ]
    calibration = pb.CalibrationSpec(
        method=pb.CALIBRATION_METHOD_MAX, synthetic=pb.SyntheticData(distribution="images", samples=16)
    )
    operation = server.optimize(model, targets=targets, calibration=calibration)
    plain, quantized, native = server.result(operation, timeout=180)

    for engine in (plain, quantized, native):
        files = {file.path: file for file in engine.files}
        described = json.loads(server.download(files["engine.json"].digest))
        assert any(path.split("/")[0] == described["payload"] for path in files)
        assert engine.backend_version and engine.batched and engine.max_batch_size == 64
        assert list(engine.inputs[0].shape) == [-1, 16, 16, 3] and engine.inputs[0].dtype == "FP32"
        assert list(engine.outputs[0].shape) == [-1, 10]
        assert engine.verification.samples == 16 and engine.verification.data == "synthetic"
        manifest = EngineManifest.from_json(server.download(engine.manifest_digest))
        assert all(stage.result["packages"] for stage in manifest.stages)
    assert quantized.verification.sqnr_db > 10
    assert quantized.verification.top1_agreement > 0.8
    assert quantized.calibration_digest
    onnx = {file.path: file.size_bytes for file in quantized.files}
    assert onnx["model.onnx"] > 0

    again = server.optimize(model, targets=targets, calibration=calibration)
    assert server.result(again) == [plain, quantized, native]
    assert set(server.states(again.name).values()) == {"REUSED"}

    strict = pb.VerificationSpec(minimum_sqnr_db=150)
    refused = server.optimize(model, targets=targets[1:2], calibration=calibration, verification=strict)
    assert list(server.watch(refused.name))[-1].state == pb.JOB_STATE_FAILED
    error = server.operations.GetOperation(operations_pb2.GetOperationRequest(name=refused.name)).error
    assert "below 150 dB" in error.message and "verify onnxruntime int8" in error.message
