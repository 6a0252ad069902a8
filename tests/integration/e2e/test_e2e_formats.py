"""Every format that a model comes in, to engines of both backends, verified on labelled pixels and served."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from image_files import pixels
from model_files import DEVIATION, MEAN, PREPROCESSING

from enginehouse import BatchProfile, Calibration, Client, Engine, Synthetic, Target, VerificationSpec
from enginehouse.client.values import Dataset, Model
from enginehouse.errors import EnginehouseError
from enginehouse.workers.environments import WorkerEnvironments

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow, pytest.mark.timeout(900)]

PROFILE = BatchProfile(1, 4, 8)
TARGETS = [
    Target("onnxruntime", "fp32", PROFILE),
    Target("onnxruntime", "int8", PROFILE),
    Target("tensorflow", "fp32", PROFILE),
]
FILES = ("colours.keras", "colours.h5", "saved_model", "saved_model_v1", "frozen.pb")

# Other weights than any seed makes, so that it shows whether the file's are taken.
ZOO_WEIGHTS = """
import sys, keras
keras.utils.set_random_seed(5)
model = keras.applications.ResNet50(weights=None, classes=4)
model.get_layer("predictions").bias.assign([40.0, 0.0, 0.0, 0.0])
model.save_weights(sys.argv[1])
"""


@pytest.fixture(scope="module")
def data(client: Client) -> Dataset:
    images, labels = pixels(24)
    return client.datasets.upload({"image": images, "labels": labels}, "pixels")


@pytest.fixture(scope="module")
def engines(client: Client, tensorflow_models: Path, data: Dataset) -> dict[str, list[Engine]]:
    """All formats at once: the optimizer queues what they need."""
    jobs = {}
    for file in FILES:
        name = file.replace("_", "-").replace(".", "-")
        model = client.models.upload(tensorflow_models / file, name, preprocessing=PREPROCESSING)
        jobs[file] = client.optimize(model, TARGETS, calibration=Calibration("max", dataset=data))
    return {file: job.result(800) for file, job in jobs.items()}


@pytest.mark.parametrize("file", FILES)
def test_a_format_becomes_engines(client: Client, engines: dict[str, list[Engine]], file: str) -> None:
    fp32, int8, graph = engines[file]
    for engine in (fp32, int8, graph):
        assert engine.batched and [spec.name for spec in engine.inputs] == ["image"], engine.inputs
        assert engine.inputs[0].shape == (-1, 16, 16, 3)
        assert engine.verification is not None and engine.verification.top1 == 1.0, (file, engine.verification)
    assert int8.verification is not None and (int8.verification.sqnr_db or 0) > 15
    assert graph.verification is not None and (graph.verification.sqnr_db or 200) > 80
    images, labels = pixels(6, seed=1)
    feed = ((images - np.array(MEAN, np.float32)) / np.float32(DEVIATION)).astype(np.float32)
    scores = []
    for number, engine in enumerate((fp32, int8, graph)):
        client.load(f"m{number}", engine)
        scores.append(client.infer(f"m{number}", feed).only())
        client.unload(f"m{number}")
        assert (scores[-1].argmax(axis=1) == labels).all()
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-4, atol=1e-4)


def test_two_formats_of_one_network_agree(client: Client, engines: dict[str, list[Engine]]) -> None:
    """What freezing makes of a Keras archive, an HDF5 file and a SavedModel of one network is one network."""
    feed = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
    found = {}
    for file in ("colours.keras", "colours.h5", "saved_model"):
        client.load("one", engines[file][0])
        found[file] = client.infer("one", feed).only()
        client.unload("one")
    for file, scores in found.items():
        np.testing.assert_allclose(scores, found["colours.keras"], rtol=1e-5, atol=1e-5, err_msg=file)


def test_channels_first_on_request(client: Client, engines: dict[str, list[Engine]], data: Dataset) -> None:
    """The same frozen graph, in a layout without transpositions; the data is arranged as it needs."""
    job = client.optimize("saved-model", TARGETS, calibration=Calibration("max", dataset=data), input_layout="nchw")
    first, small, graph = job.result(400)
    assert first.inputs[0].shape == small.inputs[0].shape == (-1, 3, 16, 16) and graph == engines["saved_model"][2]
    assert first.verification is not None and first.verification.top1 == 1.0


def test_the_zoo_takes_weights_from_a_file(client: Client, tmp_path: Path) -> None:
    weights = tmp_path / "resnet.weights.h5"
    python = str(WorkerEnvironments.discover().environment("tensorflow").python)
    subprocess.run([python, "-c", ZOO_WEIGHTS, str(weights)], check=True, capture_output=True, timeout=200)
    model: Model = client.models.create_zoo("flowers", "resnet_v1_50", weights=weights, classes=4)
    verification = VerificationSpec(synthetic=Synthetic("images", samples=2))
    (engine,) = client.optimize(model, TARGETS[:1], verification=verification).result(800)
    client.load("flowers", engine)
    image = np.random.default_rng(0).standard_normal((1, *engine.inputs[0].shape[1:])).astype(np.float32)
    scores = client.infer("flowers", image).only()
    client.unload("flowers")
    assert scores.shape == (1, 4) and scores.argmax() == 0
    wrong = client.models.create_zoo("wrong", "resnet_v1_50", weights=weights, classes=7)
    try:
        client.optimize(wrong, TARGETS[:1], verification=verification).result(800)
    except EnginehouseError as error:
        assert error.reason == "INVALID_ARGUMENT" and "weights" in error.message
    else:
        raise AssertionError("weights of four classes are none of seven")
