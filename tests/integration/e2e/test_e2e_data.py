"""One ONNX model through all kinds of data, all methods of calibration, tables, folded preprocessing and serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import normalized, pixels, write_folder, write_tfrecord
from model_files import CLASSES, PREPROCESSING

from enginehouse import BatchProfile, Calibration, Client, Engine, Target, VerificationSpec
from enginehouse.calibration import cache_text, table_text
from enginehouse.client.values import Dataset, JobView, Model, TfRecordFeatures

PROFILE = BatchProfile(1, 4, 8)
BOTH = [Target("onnxruntime", "fp32", PROFILE), Target("onnxruntime", "int8", PROFILE)]
INT8 = BOTH[1:]


@pytest.fixture(scope="module")
def model(client: Client, onnx_models: Path) -> Model:
    return client.models.upload(onnx_models / "colours.onnx", preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def data(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The same pixels, three times."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = pixels(24)
    return {
        "npz": client.datasets.upload({"image": images, "labels": labels}, "arrays"),
        "images": client.datasets.upload(write_folder(folder / "folder", images, labels)),
        "tfrecord": client.datasets.upload(
            write_tfrecord(folder / "some.tfrecord", images, labels), tfrecord=TfRecordFeatures(label_offset=1)
        ),
    }


def test_datasets_say_what_they_hold(data: dict[str, Dataset]) -> None:
    assert {name: (d.samples, d.labelled) for name, d in data.items()} == dict.fromkeys(data, (24, True))
    assert data["images"].classes == CLASSES and data["images"].format == "images"


@pytest.fixture(scope="module")
def built(client: Client, model: Model, data: dict[str, Dataset]) -> dict[str, tuple[list[Engine], JobView]]:
    """FP32 and INT8, calibrated and verified on the same pixels, by three methods of three kinds of data."""
    ways = {"max": "npz", "entropy": "images", "mse": "tfrecord"}
    jobs = {
        method: client.optimize(model, BOTH, calibration=Calibration(method, dataset=data[kind]))
        for method, kind in ways.items()
    }
    return {method: (job.result(120), job.metadata()) for method, job in jobs.items()}


def test_data_is_read_prepared_and_measured(
    client: Client, built: dict[str, tuple[list[Engine], JobView]], data: dict[str, Dataset]
) -> None:
    for method, kind in (("max", "npz"), ("entropy", "images"), ("mse", "tfrecord")):
        (fp32, int8), job = built[method]
        assert fp32.verification is not None and int8.verification is not None
        assert int8.verification.data == data[kind].name and int8.verification.samples == 24
        # Without normalization every image is blue, and without the right labels nothing is right.
        assert fp32.verification.top1 == fp32.verification.reference_top1 == 1.0, method
        assert int8.verification.top1 is not None and int8.verification.top1 >= 0.95
        assert int8.verification.sqnr_db is not None and int8.verification.sqnr_db > 15
        assert client.engines.manifest(int8)["verification"]["accuracy_measured"] is True
        table = client.calibrations.get(int8)
        assert (table.method, table.samples) == (method, 24)
        assert any(stage.name.startswith("prepare") for stage in job.stages) == (kind != "npz")
        if kind != "npz":
            manifest = client.engines.manifest(int8)
            assert data[kind].name in str(manifest) and data[kind].blob in str(manifest)


def test_the_same_pixels_give_the_same_table(
    client: Client, built: dict[str, tuple[list[Engine], JobView]], model: Model, data: dict[str, Dataset]
) -> None:
    """Also a fourth method, and one after another: nothing but the calibration is new."""
    tables = []
    for kind in ("npz", "images"):
        calibration = Calibration("percentile", percentile=99.0, dataset=data[kind])
        job = client.optimize(model, INT8, calibration=calibration, verification=VerificationSpec(dataset=data["npz"]))
        (engine,) = job.result(120)
        tables.append(client.calibrations.get(engine))
        states = {stage.name: stage.state for stage in job.metadata().stages}
        assert states["import"] == states["reference"] == "reused" and states["calibrate"] == "succeeded", states
    assert tables[0].tensors == tables[1].tensors and tables[0].percentile == 99.0
    widest = client.calibrations.get(built["max"][0][1]).tensors
    assert any(tables[0].tensors[name].amax < widest[name].amax for name in widest)


def test_tables_go_round(
    client: Client,
    built: dict[str, tuple[list[Engine], JobView]],
    model: Model,
    data: dict[str, Dataset],
    tmp_path: Path,
) -> None:
    """A table that was exported makes the same engine; a TensorRT cache makes one as good; neither runs any data."""
    original = built["max"][0][1]
    table = client.calibrations.get(original)
    exported, cache = tmp_path / "calibration.json", tmp_path / "calibration.cache"
    exported.write_text(table_text(table))
    cache.write_text(cache_text(table))
    verification = VerificationSpec(dataset=data["npz"])
    found = []
    for given in (exported, cache, client.calibrations.upload(cache)):
        job = client.optimize(model, INT8, calibration=Calibration(table=given), verification=verification)
        (engine,) = job.result(120)
        found.append(engine)
        calibrate = next(s for s in client.engines.manifest(engine)["stages"] if s["stage"] == "calibrate")
        assert set(calibrate["inputs"]) == {"model", "table"} and calibrate["params"] == {}, calibrate
    assert original.verification is not None
    assert [f.digest for f in found[0].files] == [f.digest for f in original.files]
    assert found[0].verification == original.verification
    assert found[1] == found[2] and found[1].verification is not None
    assert found[1].verification.top1 == 1.0 and (found[1].verification.sqnr_db or 0) > 15


def test_pixels_go_straight_into_an_engine_with_preprocessing(
    client: Client, built: dict[str, tuple[list[Engine], JobView]], model: Model, data: dict[str, Dataset]
) -> None:
    job = client.optimize(model, BOTH, calibration=Calibration("max", dataset=data["images"]), fold_preprocessing=True)
    folded, small = job.result(120)
    assert [(spec.dtype, spec.shape) for spec in folded.inputs] == [("UINT8", (-1, 16, 16, 3))]
    assert folded.verification is not None and folded.verification.top1 == 1.0
    assert small.verification is not None and small.verification.top1 == 1.0
    images, labels = pixels(6, seed=1)
    client.load("plain", built["max"][0][0])
    client.load("folded", folded)
    client.load("small", small)
    expected = client.infer("plain", normalized(images))["scores"]
    np.testing.assert_allclose(client.infer("folded", images)["scores"], expected, rtol=1e-4, atol=1e-4)
    assert (expected.argmax(axis=1) == labels).all()
    assert (client.infer("small", images)["scores"].argmax(axis=1) == labels).all()
    for name in ("plain", "folded", "small"):
        client.unload(name)
