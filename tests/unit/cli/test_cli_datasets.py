"""The commands for datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client_servers import PROJECT, Servers

from enginehouse.v1 import models_pb2 as pb


def test_upload_says_what_went_up(enginehouse: Any, servers: Servers) -> None:
    Path("records.bin").write_bytes(b"x")
    options = ["--format", "tfrecord", "--image-feature", "jpeg", "--label-feature", "class", "--label-offset", "1"]
    done = enginehouse("datasets", "upload", "records.bin", "--name", "r", *options)
    assert done.status == 0 and done.err.startswith("uploaded r (tfrecord, ")
    sent = servers.models.datasets[f"{PROJECT}/datasets/r"]
    assert sent.format == pb.DATASET_FORMAT_TFRECORD
    assert (sent.tfrecord.image, sent.tfrecord.label, sent.tfrecord.label_offset) == ("jpeg", "class", 1)
    assert enginehouse("datasets", "upload", "records.bin").status == 2


def test_a_folder_goes_up_from_datasets_and_optimize(enginehouse: Any, servers: Servers) -> None:
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        Path("photos", name, "a.png").write_bytes(name.encode())
    done = enginehouse("datasets", "upload", "photos", "--json")
    assert done.status == 0 and json.loads(done.out)["format"] == "images"
    optimize = ["optimize", "vgg16", "--precision", "int8", "--calibration-data", "photos/", "--detach"]
    assert enginehouse(*optimize).status == 0
    (request,) = servers.optimizer.requests
    assert request.calibration.dataset == f"{PROJECT}/datasets/photos"


def test_a_folder_is_an_id_unless_it_is_said_to_be_one(enginehouse: Any, servers: Servers) -> None:
    Path("pets").mkdir()
    Path("pets", "a.png").write_bytes(b"a")
    Path("net.keras").write_bytes(b"PK\x03\x04")
    optimize = ["optimize", "vgg16", "--precision", "int8", "--detach", "--calibration-data"]
    done = enginehouse(*optimize, "pets")
    assert done.status == 3 and "say ./pets" in done.err
    assert "unknown dataset 'net.keras'" in enginehouse(*optimize, "net.keras").err
    assert "there is no some/where" in enginehouse(*optimize, "some/where").err
    name = f"{PROJECT}/datasets/pets"
    servers.models.datasets[name] = pb.Dataset(name=name)
    assert enginehouse(*optimize, "pets").status == 0
    assert servers.optimizer.requests[-1].calibration.dataset == name


def test_list_and_show_tell_formats_and_classes(enginehouse: Any, servers: Servers) -> None:
    assert "datasets upload FILE" in enginehouse("datasets", "list").err
    name = f"{PROJECT}/datasets/pets"
    servers.models.datasets[name] = pb.Dataset(
        name=name, format=pb.DATASET_FORMAT_IMAGES, samples=7, labelled=True, classes=["cat", "dog"]
    )
    header, row = enginehouse("datasets", "list").out.splitlines()
    assert header.split() == ["DATASET", "FORMAT", "SAMPLES", "LABELLED", "CLASSES", "SIZE", "CREATED"]
    assert row.split()[:5] == ["pets", "images", "7", "True", "2"]
    shown = enginehouse("datasets", "show", "pets").out
    assert '["cat", "dog"]' in shown and "images" in shown
