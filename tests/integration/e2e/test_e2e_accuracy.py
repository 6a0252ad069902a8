"""A layer that INT8 spoils: found, named, left out, and to blame when the gate refuses the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import enginehouse
from image_files import pixels
from model_files import PREPROCESSING

from enginehouse import (
    AutomaticExclusion,
    BatchProfile,
    Calibration,
    Client,
    Engine,
    Synthetic,
    Target,
    VerificationSpec,
)
from enginehouse.client.values import Dataset, Model
from enginehouse.errors import FailedPreconditionError

INT8 = [Target("onnxruntime", "int8", BatchProfile(1, 4, 8))]
SPOILED = "second/conv"


@pytest.fixture(scope="module")
def model(client: Client, onnx_models: Path) -> Model:
    return client.models.upload(onnx_models / "outlier.onnx", preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def unlabelled(client: Client) -> Dataset:
    return client.datasets.upload({"image": pixels(24)[0]}, "unlabelled")


@pytest.fixture(scope="module")
def engine(client: Client, model: Model, unlabelled: Dataset) -> Engine:
    calibration = Calibration(
        "max", dataset=unlabelled, automatic_exclusion=AutomaticExclusion(minimum_sqnr_db=20.0, max_layers=2)
    )
    verification = VerificationSpec(minimum_sqnr_db=20.0, per_layer=True)
    (made,) = client.optimize(model, INT8, calibration=calibration, verification=verification).result(120)
    return made


def test_the_layer_is_found_and_left_out(client: Client, engine: Engine) -> None:
    assert engine.verification is not None and engine.verification.sqnr_db is not None
    assert engine.verification.sqnr_db >= 20.0 and engine.verification.top1 is None
    table = client.engines.sensitivity(engine)
    assert table is not None and table["quantized_sqnr_db"] < 15.0 < 20.0 <= table["reached_sqnr_db"]
    worst = table["layers"][0]
    assert (worst["name"], worst["excluded"]) == (SPOILED, True)
    # What the layer reads is rounded by the kernel before it, which therefore goes with it.
    assert table["excluded"] == [SPOILED, "first/conv"]
    assert client.engines.manifest(engine)["verification"]["accuracy_measured"] is False
    compared = client.engines.layers(engine)
    assert compared is not None
    layers = {layer["name"]: layer for layer in compared["layers"]}
    assert "own_sqnr_db" not in layers[SPOILED] and layers["third/conv"]["own_sqnr_db"] > 20.0


def test_the_command_line_prints_the_layers(home: Path, engine: Engine) -> None:
    shown = enginehouse(home, "engines", "show", engine.id, "--layers")
    (row, *_) = [line for line in shown.stdout.splitlines() if SPOILED in line]
    assert "yes" in row and "NOISE SHARE" in shown.stdout and "OWN SQNR dB" in shown.stdout
    assert "layers in higher precision" in shown.stderr
    tables = json.loads(enginehouse(home, "engines", "show", engine.id, "--layers", "--json").stdout)
    assert tables["sensitivity"]["excluded"] and tables["layers"]["layers"]


def test_a_refusal_names_numbers_and_layers(
    home: Path, client: Client, model: Model, unlabelled: Dataset, engine: Engine
) -> None:
    engines = {found.name for found in client.engines.list()}
    job = client.optimize(
        model,
        INT8,
        calibration=Calibration("max", dataset=unlabelled),
        verification=VerificationSpec(minimum_sqnr_db=20.0),
    )
    with pytest.raises(FailedPreconditionError) as refused:
        job.result(120)
    error = refused.value
    assert "dB against FP32, on 24 samples" in error.message and "at least 20 dB" in error.message
    assert "there are no labels" in error.message and "Layers that cost most" in error.message
    assert error.message.partition("Layers that cost most")[2].index(SPOILED) < 80, error.message
    assert error.details["layers_to_blame"].split(",")[0] == SPOILED
    assert {found.name for found in client.engines.list()} == engines
    shown = enginehouse(home, "jobs", "show", job.id).stdout
    assert "failed" in shown and "FAILED_PRECONDITION" in shown and "sensitivity of onnxruntime int8" in shown
    # The stage that looks for the layers has a log as every other has.
    assert enginehouse(home, "jobs", "log", job.id, "sensitivity of onnxruntime int8").returncode == 0


def test_labels_decide_where_there_are_labels(client: Client, model: Model) -> None:
    """Data that the calibration did not prepare the engine for: made-up samples of another scale."""
    images, labels = pixels(24)
    labelled = client.datasets.upload({"image": images, "labels": labels}, "labelled")
    job = client.optimize(
        model,
        INT8,
        calibration=Calibration("percentile", percentile=50.0, synthetic=Synthetic(samples=4)),
        verification=VerificationSpec(dataset=labelled),
    )
    with pytest.raises(
        FailedPreconditionError, match=r"top-1 0\.\d+ where FP32 has 1\.0000, on 24 labelled"
    ) as refused:
        job.result(120)
    assert "at least 99% is wanted" in refused.value.message and refused.value.details["layers_to_blame"]
