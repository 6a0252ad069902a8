"""Commands on engines, their aliases and files, and the options of uploads and optimizations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from client_servers import PROJECT, Servers

from enginehouse.calibration import read_cache, table_text
from enginehouse.cli.preprocessing import read_preprocessing
from enginehouse.client.values import Preprocessing
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import engines_pb2, models_pb2

ENGINE = f"{PROJECT}/engines/m-onnxruntime-fp32-0123456789ab"


@pytest.fixture
def engine(servers: Servers) -> engines_pb2.Engine:
    found = engines_pb2.Engine(name=ENGINE, model=f"{PROJECT}/models/m", backend="onnxruntime")
    servers.engines.engines[ENGINE] = found
    servers.optimizer.engines = [found]
    return found


def test_aliases_and_pins(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    name = ENGINE.rsplit("/", 1)[-1]
    assert enginehouse("engines", "aliases").err.startswith("no aliases")
    assert enginehouse("engines", "alias", "m:prod", name).err == f"m:prod is {name}\n"
    assert enginehouse("engines", "aliases").out.splitlines()[1].split()[:2] == ["m:prod", name]
    assert json.loads(enginehouse("engines", "show", "m:prod", "--json").out)["aliases"] == ["prod"]
    assert enginehouse("engines", "pin", "m:prod").err == f"pinned {name}\n"
    assert "prod, (pinned)" in enginehouse("engines", "list", "--device", "cpu").out
    assert enginehouse("engines", "unpin", name).status == 0 and not engine.pinned
    loaded = enginehouse("load", "m", "--engine", "m:prod", "--no-wait")
    assert loaded.status == 0 and "follows m:prod" in loaded.err
    assert (
        servers.serving.configs[f"{PROJECT}/servingConfigs/m"].versions[0].alias == f"{PROJECT}/models/m/aliases/prod"
    )
    assert "m:prod" in enginehouse("serving").out
    assert enginehouse("load", "m", name, "--engine", "m:prod").status == 2
    assert enginehouse("engines", "unalias", "m:prod").status == 0
    missing = enginehouse("engines", "show", "m:prod")
    assert missing.status == 3 and "aliases/prod" in missing.err
    assert enginehouse("engines", "alias", "prod", name).status == 2


def test_tables_of_layers(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    name = ENGINE.rsplit("/", 1)[-1]
    none = enginehouse("engines", "show", name, "--layers")
    assert none.status == 0 and none.out == "" and "no layers were measured" in none.err
    layer = {"name": "conv1", "type": "Conv", "sqnr_db": 21.5, "noise_share": 0.75, "excluded": True}
    sensitivity = {"samples": 16, "excluded": ["conv1"], "quantized_sqnr_db": 12.0, "reached_sqnr_db": 22.0}
    compared = {"samples": 4, "layers": [{**layer, "cosine": 0.5, "own_sqnr_db": 30.0}]}
    engine.sensitivity_digest = servers.blobs.add(json.dumps({**sensitivity, "layers": [layer]}).encode())
    engine.layers_digest = servers.blobs.add(json.dumps(compared).encode())
    shown = enginehouse("engines", "show", name, "--layers")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[0] == ["NAME", "TYPE", "SQNR", "dB", "NOISE", "SHARE", "EXCLUDED"]
    assert rows[1] == ["conv1", "Conv", "21.5", "0.75", "yes"] and rows[3] == ["conv1", "Conv", "21.5", "30", "0.5"]
    assert "with 1 layers in higher precision: 22 dB" in shown.err
    assert json.loads(enginehouse("engines", "show", name, "--layers", "--json").out)["layers"] == compared


INSPECTOR = {
    "layers": [
        {"name": "conv1 + relu1", "type": "CaskConvolution", "precision": "INT8", "milliseconds": 0.25, "nodes": ["c"]},
        {"name": "reformat", "type": "Reformat"},
        {"name": "fc", "type": "CaskGemm", "precision": "FP16", "milliseconds": 0.75},
    ],
    "batch": 8,
    "runs": 10,
}


def test_times_of_layers(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    name = ENGINE.rsplit("/", 1)[-1]
    assert "this one has no inspector.json" in enginehouse("engines", "show", name, "--layers").err
    digest = servers.blobs.add(json.dumps(INSPECTOR).encode())
    engine.files.append(engines_pb2.EngineFile(path="inspector.json", digest=digest))
    shown = enginehouse("engines", "show", name, "--layers")
    assert "3 layers, 1 ms one after the other (batch 8, mean of 10 runs)" in shown.err
    lines = shown.out.splitlines()
    assert lines[0].split() == ["LAYER", "TYPE", "PRECISION", "MS", "SHARE"]
    assert lines[1].split() == ["fc", "CaskGemm", "FP16", "0.7500", "75.0%"], "the slowest first"
    assert lines[2].split()[-3:] == ["INT8", "0.2500", "25.0%"]
    assert lines[3].split() == ["reformat", "Reformat", "-", "-", "-"], "what is not known is last"
    graph = enginehouse("engines", "show", name, "--layers", "--sort", "graph").out.splitlines()
    assert [line.split()[0] for line in graph[1:]] == ["conv1", "reformat", "fc"]
    assert json.loads(enginehouse("engines", "show", name, "--layers", "--json").out)["inspector"] == INSPECTOR


def test_layers_without_times(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    digest = servers.blobs.add(json.dumps({"layers": [{"name": "b"}, {"name": "a"}, "text"]}).encode())
    engine.files.append(engines_pb2.EngineFile(path="inspector.json", digest=digest))
    shown = enginehouse("engines", "show", ENGINE.rsplit("/", 1)[-1], "--layers")
    assert "2 layers; their times were not measured" in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["b", "a"]


def test_an_engine_that_was_not_verified_says_why(
    enginehouse: Any, engine: engines_pb2.Engine, servers: Servers
) -> None:
    servers.models.models[f"{PROJECT}/models/m"] = models_pb2.Model(name=f"{PROJECT}/models/m")
    why = "it was built for compute capability 8.9"
    engine.manifest_digest = servers.blobs.add(json.dumps({"verification": {"not_verified": why}}).encode())
    for command in (["engines", "show", engine.name], ["optimize", "m"]):
        assert f"is not verified: {why}" in enginehouse(*command).err
    engine.verification.samples = 8
    assert "not verified" not in enginehouse("engines", "show", engine.name).err


def test_targets_of_an_optimization(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    servers.models.models[f"{PROJECT}/models/m"] = models_pb2.Model(name=f"{PROJECT}/models/m")
    both = ["--target", "tensorrt:int8@NVIDIA-H200", "--target", "onnxruntime:fp32"]
    assert enginehouse("optimize", "m", *both, "--synthetic", "8").status == 0
    targets = servers.optimizer.requests[-1].targets
    assert [(t.backend, t.precision, t.gpu_product) for t in targets] == [
        ("tensorrt", engines_pb2.PRECISION_INT8, "NVIDIA-H200"),
        ("onnxruntime", engines_pb2.PRECISION_FP32, ""),
    ]
    nowhere = ["--target", "onnxruntime:fp32@"]
    for wrong in ([*both, "--synthetic", "8", "--precision", "fp32"], ["--target", "tensorrt"], both[:2], nowhere):
        assert enginehouse("optimize", "m", *wrong).status == 2, wrong


def test_uploads_with_what_files_do_not_say(enginehouse: Any, servers: Servers) -> None:
    Path("net.bin").write_bytes(b"graph")
    Path("prep.json").write_text(json.dumps({"mean": [1, 2, 3], "bgr": True}))
    options = ["--inputs", "a:0", "--inputs", "b:0", "--outputs", "c:0", "--preprocessing", "prep.json"]
    done = enginehouse(
        "models", "upload", "net.bin", "--format", "frozen_graph", *options, "--deviation", "58.4", "--json"
    )
    assert done.status == 0, done.err
    model = servers.models.models[f"{PROJECT}/models/net"]
    assert model.import_options == models_pb2.ImportOptions(inputs=["a:0", "b:0"], outputs=["c:0"])
    assert model.preprocessing == models_pb2.Preprocessing(mean=[1, 2, 3], deviation=[58.4], bgr=True)
    Path("w.h5").write_bytes(b"weights")
    assert enginehouse("models", "zoo", "vgg16", "--name", "mine", "--weights", "w.h5", "--classes", "7").status == 0
    zoo = servers.models.models[f"{PROJECT}/models/mine"].zoo
    assert zoo.classes == 7 and servers.blobs.whole[zoo.weights] == b"weights"


def test_options_of_an_optimization(enginehouse: Any, engine: engines_pb2.Engine, servers: Servers) -> None:
    servers.models.models[f"{PROJECT}/models/m"] = models_pb2.Model(name=f"{PROJECT}/models/m")
    int8 = ["optimize", "m", "--precision", "int8"]
    flags = [
        "--auto-exclude-db",
        "25",
        "--max-excluded",
        "3",
        "--per-layer",
        "--fold-preprocessing",
        "--priority",
        "-5",
    ]
    done = enginehouse(*int8, "--synthetic", "8", "--exclude", "Gemm", *flags)
    assert done.status == 0, done.err
    request = servers.optimizer.requests[-1]
    automatic = request.calibration.automatic_exclusion
    assert (automatic.minimum_sqnr_db, automatic.max_layers, list(request.calibration.exclude)) == (25, 3, ["Gemm"])
    assert request.verification.per_layer and request.fold_preprocessing and request.priority == -5
    assert enginehouse(*int8, "--synthetic", "8", "--auto-exclude").status == 0
    automatic = servers.optimizer.requests[-1].calibration.automatic_exclusion
    assert servers.optimizer.requests[-1].calibration.HasField("automatic_exclusion")
    assert not automatic.HasField("minimum_sqnr_db")
    text = table_text(read_cache("TRT-8600-EntropyCalibration2\ninput: 3f800000\n"))
    Path("table.json").write_text(text)
    assert enginehouse(*int8, "--calibration-table", "table.json").status == 0
    assert servers.blobs.whole[servers.optimizer.requests[-1].calibration.table] == text.encode()
    for wrong in (
        [],
        ["--calibration-table", "table.json", "--synthetic", "3"],
        ["--calibration-table", "table.json", "--auto-exclude"],
        ["--calibration-table", "none.json"],
        ["--synthetic", "8", "--max-excluded", "3"],
        ["--synthetic", "8", "--priority", "101"],
    ):
        assert enginehouse(*int8, *wrong).status == 2, wrong


def test_files_that_are_no_engines(enginehouse: Any) -> None:
    Path("x.engine").write_bytes(b"hello" * 500)
    refused = enginehouse("engines", "import", "x.engine")
    assert refused.status == 2 and "x.engine is no engine bundle" in refused.err
    assert enginehouse("engines", "import", "none.engine").status == 2


def test_preprocessing_texts(tmp_path: Path) -> None:
    assert read_preprocessing(None, None, None, False, None, None) is None
    found = read_preprocessing(None, "1,2.5,3", None, True, 0.5, "bicubic")
    assert found == Preprocessing((1.0, 2.5, 3.0), (), True, 0.5, "bicubic")
    file = tmp_path / "p.json"
    file.write_text('{"mean": 127.5, "resampling": "nearest"}')
    assert read_preprocessing(file, None, None, False, None, "lanczos") == Preprocessing((127.5,), resampling="lanczos")
    for text in ("[", "[1]", '{"means": 1}', '{"mean": "x"}'):
        file.write_text(text)
        with pytest.raises(InvalidArgumentError, match=r"p\.json is no preprocessing"):
            read_preprocessing(file, None, None, False, None, None)
    with pytest.raises(InvalidArgumentError, match="--mean"):
        read_preprocessing(None, "a,b", None, False, None, None)
