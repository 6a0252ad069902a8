"""The stages of the onnxruntime environment, end to end, as processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import Network, residual_classifier
from onnx import numpy_helper
from stages import finish, run, start, start_spec, succeed, write_dataset

PROFILE = {"min": 1, "opt": 4, "max": 16}


def stripes(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (samples, 3, 16, 16) of stripes at one of ten angles, and the angle's number."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, samples)
    angle = labels * np.pi / 10
    y, x = np.mgrid[0:16, 0:16]
    phase = random.uniform(0, 2 * np.pi, (samples, 1, 1))
    waves = np.sin((x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]) * 1.3 + phase)
    noise = random.standard_normal((samples, 3, 16, 16)) * 0.5
    return (waves[:, None] + noise).astype(np.float32), labels.astype(np.int64)


def trained_classifier() -> onnx.ModelProto:
    """Random residual features with a linear head fitted to the stripes by ridge regression."""
    model = residual_classifier(seed=3)
    features = onnx.ModelProto()
    features.CopyFrom(model)
    gemm = model.graph.node[-1]
    features.graph.output.append(onnx.helper.make_tensor_value_info(gemm.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(features.SerializeToString(), providers=["CPUExecutionProvider"])
    images, labels = stripes(2000, seed=1)
    values = session.run([gemm.input[0]], {"input": images})[0].astype(np.float64)
    mean = values.mean(axis=0)
    centred, targets = values - mean, np.eye(10)[labels] - 0.1
    weights = np.linalg.solve(centred.T @ centred + 1e-3 * np.eye(len(mean)), centred.T @ targets)
    for tensor in model.graph.initializer:
        if tensor.name == gemm.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), tensor.name))
        if tensor.name == gemm.input[2]:
            tensor.CopyFrom(numpy_helper.from_array((0.1 - mean @ weights).astype(np.float32), tensor.name))
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    onnx.save(trained_classifier(), str(directory / "model.onnx"))
    return directory


@pytest.fixture(scope="module")
def calibration_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "calibration", input=stripes(64, seed=2)[0])


@pytest.fixture(scope="module")
def test_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = stripes(500, seed=4)
    return write_dataset(tmp_path_factory.mktemp("data") / "test", x=images, labels=labels)


@pytest.fixture(scope="module")
def reference(model: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return succeed("reference", tmp_path_factory.mktemp("reference"), {"model": model, "dataset": test_data}).output


@pytest.mark.parametrize("method", ["entropy", "max", "percentile", "mse"])
def test_int8_keeps_accuracy(
    method: str, model: Path, calibration_data: Path, test_data: Path, reference: Path, tmp_path: Path
) -> None:
    table = succeed(
        "calibrate", tmp_path / "table", {"model": model, "dataset": calibration_data}, method=method, batch_size=10
    )
    assert table.result["samples"] == 64
    quantized = succeed(
        "quantize", tmp_path / "int8", {"model": model, "calibration": table.output}, dialect="onnxruntime"
    )
    assert quantized.result["optimized_operators"]["QLinearConv"] == 6
    assert quantized.result["optimized_operators"].get("DequantizeLinear", 0) == 0
    engine = succeed(
        "build",
        tmp_path / "engine",
        {"model": quantized.output},
        backend="onnxruntime",
        precision="INT8",
        profile=PROFILE,
    )
    description = json.loads((engine.output / "engine.json").read_text())
    assert description["max_batch_size"] == 16
    assert description["backend_version"] == onnxruntime.__version__
    verified = succeed(
        "verify",
        tmp_path / "verified",
        {"engine": engine.output, "reference": reference, "dataset": test_data},
        minimum_relative_accuracy=0.95,
    )
    found = json.loads((verified.output / "verification.json").read_text())
    assert found["samples"] == 500
    assert found["reference_top1"] > 0.8
    assert found["top1"] >= 0.95 * found["reference_top1"]
    assert found["top5"] >= found["top1"]
    # A head fitted to random features weighs small differences of large values, more than a trained network does.
    assert found["cosine"] > 0.93
    assert found["top1_agreement"] > 0.88


def test_the_fp32_engine_is_exact_and_has_no_sqnr(
    model: Path, test_data: Path, reference: Path, tmp_path: Path
) -> None:
    engine = succeed(
        "build", tmp_path / "engine", {"model": model}, backend="onnxruntime", precision="fp32", profile=PROFILE
    )
    inputs = {"engine": engine.output, "reference": reference, "dataset": test_data}
    found = succeed("verify", tmp_path / "verified", inputs, batch_size=8).result["verification"]
    assert found["top1_agreement"] == 1.0
    assert found["top1"] == found["reference_top1"]
    assert "sqnr_db" not in found or found["sqnr_db"] > 100


def test_the_same_calibration_twice_is_the_same_file(model: Path, calibration_data: Path, tmp_path: Path) -> None:
    inputs = {"model": model, "dataset": calibration_data}
    first = succeed("calibrate", tmp_path / "a", inputs, method="max", batch_size=4)
    second = succeed("calibrate", tmp_path / "b", inputs, method="max", batch_size=64)
    tables = [json.loads((done.output / "calibration.json").read_text()) for done in (first, second)]
    # In graph order, a line each.
    names = list(tables[0]["tensors"])
    nodes = onnx.load(str(model / "model.onnx")).graph.node
    order = {"input": -1, **{output: number for number, node in enumerate(nodes) for output in node.output}}
    assert names == sorted(names, key=order.__getitem__)
    lines = (first.output / "calibration.json").read_text().splitlines()
    assert sum(line.startswith('    "') for line in lines) == len(names)
    for name, entry in tables[0]["tensors"].items():
        # Batch sizes change the order of sums inside convolutions, and nothing else.
        assert entry == pytest.approx(tables[1]["tensors"][name], rel=1e-4, abs=1e-5)
    assert first.result["data"] == second.result["data"]


def test_an_inaccurate_engine_is_refused_with_the_numbers(
    model: Path, test_data: Path, reference: Path, tmp_path: Path
) -> None:
    quiet = write_dataset(tmp_path / "quiet", input=stripes(8, seed=2)[0] * np.float32(0.02))
    table = succeed("calibrate", tmp_path / "table", {"model": model, "dataset": quiet}, method="max").output
    quantized = succeed(
        "quantize", tmp_path / "int8", {"model": model, "calibration": table}, dialect="onnxruntime"
    ).output
    engine = succeed(
        "build", tmp_path / "engine", {"model": quantized}, backend="onnxruntime", precision="INT8", profile=PROFILE
    ).output
    inputs = {"engine": engine, "reference": reference, "dataset": test_data}
    error = run("verify", tmp_path / "refused", inputs, minimum_relative_accuracy=0.99).error
    assert error["code"] == "FAILED_PRECONDITION"
    assert error["details"]["top1"] < 0.99 * error["details"]["reference_top1"]
    unlabelled = write_dataset(tmp_path / "unlabelled", input=stripes(500, seed=4)[0])
    error = run("verify", tmp_path / "noisy", {**inputs, "dataset": unlabelled}, minimum_sqnr_db=20.0).error
    assert error["code"] == "FAILED_PRECONDITION"
    assert error["details"]["sqnr_db"] < 20.0
    assert "top1" not in error["details"]


def test_the_tensorrt_dialect_is_close_too(model: Path, calibration_data: Path, tmp_path: Path) -> None:
    table = succeed("calibrate", tmp_path / "table", {"model": model, "dataset": calibration_data}).output
    inputs = {"model": model, "calibration": table}
    done = succeed("quantize", tmp_path / "int8", inputs, dialect="tensorrt", exclude=["Gemm"])
    assert done.result["quantized_operators"]["Add"] == 2
    assert done.result["excluded_nodes"] == 1
    images = stripes(100, seed=9)[0]
    outputs = [
        onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"]).run(
            None, {"input": images}
        )[0]
        for directory in (model, done.output)
    ]
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() > 0.9
    error = run(
        "build", tmp_path / "engine", {"model": done.output}, backend="onnxruntime", precision="INT8", profile=PROFILE
    ).error
    assert "dialect" in error["message"]


def test_synthetic_data_serves_every_stage(model: Path, tmp_path: Path) -> None:
    synthetic = {"distribution": "images", "samples": 12, "seed": 3}
    table = succeed("calibrate", tmp_path / "table", {"model": model}, synthetic=synthetic, method="percentile").output
    assert json.loads((table / "calibration.json").read_text())["data"]["kind"] == "synthetic"
    reference = succeed("reference", tmp_path / "reference", {"model": model}, synthetic=synthetic, batch_size=5).output
    engine = succeed(
        "build", tmp_path / "engine", {"model": model}, backend="onnxruntime", precision="FP32", profile=PROFILE
    ).output
    done = succeed(
        "verify", tmp_path / "verified", {"engine": engine, "reference": reference}, synthetic=synthetic, batch_size=7
    )
    assert done.result["verification"]["samples"] == 12
    assert "top1" not in done.result["verification"]


def test_multiple_inputs_and_outputs_of_any_rank(tmp_path: Path) -> None:
    net = Network((6,))
    hidden = net.node("Relu", [net.dense("input", 6, 8)])
    second = onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, ["batch", 5, 8])
    wide = net.node("Unsqueeze", [hidden, net.constant([1], np.int64)])
    product = net.node("Mul", [wide, "scale"])
    probabilities = net.node("Softmax", [net.dense(hidden, 8, 4)], axis=-1)
    net.nodes.append(onnx.helper.make_node("Identity", [product], ["scaled"]))
    graph_outputs = {probabilities: ["batch", 4], "scaled": ["batch", 5, 8]}
    graph = onnx.helper.make_graph(
        net.nodes,
        "two",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 6]), second],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in graph_outputs.items()],
        net.constants,
    )
    directory = tmp_path / "model"
    directory.mkdir()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(directory / "model.onnx"))
    random = np.random.default_rng(0)
    data = write_dataset(
        tmp_path / "data",
        input=random.standard_normal((20, 6), np.float32),
        scale=random.standard_normal((20, 5, 8), np.float32),
    )
    inputs = {"model": directory, "dataset": data}
    table = succeed("calibrate", tmp_path / "table", inputs).output
    quantized = succeed(
        "quantize", tmp_path / "int8", {"model": directory, "calibration": table}, dialect="onnxruntime"
    ).output
    engine = succeed(
        "build", tmp_path / "engine", {"model": quantized}, backend="onnxruntime", precision="INT8", profile=PROFILE
    ).output
    reference = succeed("reference", tmp_path / "reference", inputs).output
    done = succeed("verify", tmp_path / "verified", {"engine": engine, "reference": reference, "dataset": data})
    outputs = done.result["verification"]["outputs"]
    assert set(outputs) == {probabilities, "scaled"}
    assert outputs[probabilities]["compared_logits"] is True
    assert done.result["verification"]["sqnr_db"] == min(o["sqnr_db"] for o in outputs.values())


IMAGES = stripes(4, seed=0)[0]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"pictures": IMAGES}, "unknown pictures"),
        ({"input": IMAGES, "extra": IMAGES}, "unknown extra"),
        ({"input": IMAGES[:, :2]}, "shape"),
        ({"input": IMAGES.astype(np.float64)}, "astype"),
        ({"input": IMAGES[:0]}, "no samples"),
        ({"input": np.array([object()] * 4)}, "pickled"),
        ({"input": np.float32(1)}, "single value"),
        ({"input": IMAGES, "labels": np.zeros(3, np.int64)}, "labels"),
        ({"input": IMAGES, "labels": np.zeros(4, np.float32)}, "labels"),
        ({"input": np.full_like(IMAGES, np.nan)}, "NaN"),
    ],
)
def test_unusable_datasets_are_explained(
    arrays: dict[str, np.ndarray], expected: str, model: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", **arrays)
    error = run("calibrate", tmp_path / "table", {"model": model, "dataset": data}).error
    assert error["code"] == "INVALID_ARGUMENT"
    assert expected in error["message"]


def test_images_stored_channels_last_are_turned(model: Path, tmp_path: Path) -> None:
    last = write_dataset(tmp_path / "last", input=np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)))
    first = write_dataset(tmp_path / "first", input=IMAGES)
    outputs = []
    for data in (last, first):
        done = succeed("reference", tmp_path / f"out-{data.name}", {"model": model, "dataset": data})
        with np.load(done.output / "outputs.npz") as arrays:
            outputs.append(arrays[arrays.files[0]])
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_file_that_is_no_npz_is_explained(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert "exactly one .npz" in run("calibrate", tmp_path / "a", {"model": model, "dataset": data}).error["message"]
    (data / "data.npz").write_bytes(b"not a zip")
    assert "numpy.savez" in run("calibrate", tmp_path / "b", {"model": model, "dataset": data}).error["message"]


def test_damaged_and_truncated_arrays_are_explained(model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", input=IMAGES)
    path = data / "data.npz"
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(bytes(content))
    error = run("calibrate", tmp_path / "table", {"model": model, "dataset": data}).error
    assert error["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("stage", "inputs", "params", "expected"),
    [
        ("calibrat", (), {}, "did you mean 'calibrate'"),
        ("calibrate", (), {}, "input 'model' is missing"),
        ("calibrate", ("model",), {}, "neither"),
        ("calibrate", ("model",), {"methd": "max"}, "did you mean 'method'"),
        ("calibrate", ("model",), {"method": "guess"}, "one of entropy"),
        ("calibrate", ("model",), {"synthetic": {"distribution": "cauchy"}}, "one of images"),
        ("calibrate", ("model",), {"batch_size": 0}, "from 1"),
        ("calibrate", ("model",), {"batch_size": True}, "from 1"),
        ("calibrate", ("model", "engine"), {}, "unknown input 'engine'"),
        ("quantize", ("model",), {"dialect": "tensorrt"}, "input 'calibration' is missing"),
        ("quantize", ("model",), {}, "'dialect' is missing"),
        ("build", ("model",), {"backend": "onnx", "precision": "FP32"}, "unknown backend"),
        ("build", ("model",), {"backend": "onnxruntime", "precision": "INT8"}, "quantize stage"),
        ("build", ("model",), {"backend": "onnxruntime", "precision": "FP32", "profile": {"min": 9}}, "min <= opt"),
        (
            "build",
            ("model",),
            {"backend": "onnxruntime", "precision": "FP32", "options": {"intra_threads": "2"}},
            "did you mean 'intra_op_threads'",
        ),
    ],
)
def test_bad_requests_are_explained(
    stage: str, inputs: tuple[str, ...], params: dict[str, object], expected: str, model: Path, tmp_path: Path
) -> None:
    error = run(stage, tmp_path / "out", dict.fromkeys(inputs, model), **params).error
    assert error["code"] == "INVALID_ARGUMENT"
    assert expected in error["message"]


def test_what_a_backend_lacks_is_a_failed_precondition(model: Path, tmp_path: Path) -> None:
    error = run("build", tmp_path / "a", {"model": model}, backend="onnxruntime", precision="FP16").error
    assert error["code"] == "FAILED_PRECONDITION"
    error = run("build", tmp_path / "b", {"model": model}, backend="tensorflow", precision="FP32").error
    assert error["code"] in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")


def test_a_table_of_another_model_is_refused(model: Path, calibration_data: Path, tmp_path: Path) -> None:
    table = succeed("calibrate", tmp_path / "table", {"model": model, "dataset": calibration_data}, method="max").output
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(residual_classifier(seed=8), str(other / "model.onnx"))
    error = run("quantize", tmp_path / "out", {"model": other, "calibration": table}, dialect="tensorrt").error
    assert "calibrate this model" in error["message"]
    error = run(
        "quantize", tmp_path / "out2", {"model": model, "calibration": table}, dialect="tensorrt", exclude=["Convv"]
    ).error
    assert "Conv" in error["details"]["close_matches"]


def test_an_output_directory_in_use_and_a_broken_model_are_refused(model: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "old").touch()
    done = finish(start("calibrate", used, {"model": model}))
    assert next(e for e in done.events if e["event"] == "error")["message"].endswith("give an empty one")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"\x00nonsense")
    error = run("reference", tmp_path / "out", {"model": broken}, synthetic={"samples": 1}).error
    assert error["code"] == "INVALID_ARGUMENT"


def test_a_spec_that_is_no_json_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text("{")
    assert finish(start_spec(spec, tmp_path / "out")).error["code"] == "INVALID_ARGUMENT"


def _slow_stage(model: Path, tmp_path: Path) -> tuple[object, str]:
    """A calibration that would take minutes, and its first progress event that comes from a batch."""
    started = start(
        "calibrate",
        tmp_path / "table",
        {"model": model},
        synthetic={"samples": 1_000_000},
        batch_size=1,
        max_samples=1_000_000,
    )
    line = b""
    while b"batch" not in line:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(started.events_fd, 1)
    return started, line.decode()


def test_sigterm_stops_a_stage_at_once(model: Path, tmp_path: Path) -> None:
    started, _ = _slow_stage(model, tmp_path)
    begin = time.monotonic()
    started.process.send_signal(signal.SIGTERM)
    done = finish(started)
    assert time.monotonic() - begin < 2.0
    assert done.error["code"] == "CANCELLED"


def test_a_killed_stage_leaves_neither_an_error_nor_a_result(model: Path, tmp_path: Path) -> None:
    started, _ = _slow_stage(model, tmp_path)
    started.process.kill()
    done = finish(started)
    assert done.status == -signal.SIGKILL
    assert all(event["event"] == "progress" for event in done.events)
    assert not done.result


def test_a_stage_that_nobody_listens_to_stops(model: Path, tmp_path: Path) -> None:
    started, _ = _slow_stage(model, tmp_path)
    os.close(started.events_fd)
    assert started.process.wait(timeout=20) == 1
    assert not (tmp_path / "table" / "result.json").exists()
