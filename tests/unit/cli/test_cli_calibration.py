"""calibration show, export, import, diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client_servers import PROJECT, Servers

from enginehouse.calibration import CalibrationTable, TensorRange, read_table, table_text
from enginehouse.v1 import engines_pb2

TABLE = CalibrationTable(
    "entropy",
    {"input": TensorRange(-1.0, 2.0, 127.0, -1.0, 2.0), "relu:0": TensorRange(0.0, 4.0, 4.0, 0.0, 4.0)},
    "sha256:0",
    {"kind": "dataset"},
    16,
)


def _engine(servers: Servers, table: CalibrationTable | None) -> str:
    name = f"{PROJECT}/engines/m-int8"
    engine = engines_pb2.Engine(name=name, model=f"{PROJECT}/models/m", backend="onnxruntime")
    if table is not None:
        engine.calibration_digest = servers.blobs.add(table_text(table).encode())
    servers.engines.engines[name] = engine
    return "m-int8"


def test_an_engines_table_goes_to_tensorrt_and_comes_back(enginehouse: Any, servers: Servers) -> None:
    engine = _engine(servers, TABLE)
    shown = enginehouse("calibration", "show", engine)
    assert shown.status == 0 and "entropy, 16 samples" in shown.out and "relu:0" in shown.out
    assert enginehouse("calibration", "export", engine, "-o", "table.json").status == 0
    assert read_table(Path("table.json").read_text()) == TABLE
    assert enginehouse("calibration", "export", engine, "--format", "tensorrt", "-o", "t.cache").status == 0
    assert Path("t.cache").read_text().splitlines()[:2] == ["TRT-8600-EntropyCalibration2", "input: 3f800000"]
    assert enginehouse("calibration", "export", "table.json").out == table_text(TABLE)

    done = enginehouse("calibration", "import", "t.cache")
    digest = done.out.strip()
    assert done.status == 0 and digest.startswith("sha256:") and digest in done.err
    uploaded = read_table(servers.blobs.whole[digest])
    assert uploaded.tensors["input"].rmin == -127.0 and uploaded.data["kind"] == "tensorrt_cache"

    compared = enginehouse("calibration", "diff", engine, "t.cache")
    assert "input" in compared.out and compared.status == 0
    assert "equal (2 tensors)" in enginehouse("calibration", "diff", engine, "table.json").err
    as_json = json.loads(enginehouse("calibration", "diff", engine, "t.cache", "--json").out)
    assert as_json["different"][0]["tensor"] == "input" and as_json["different"][0]["symmetric"] == 1.0


def test_what_is_no_table_is_explained(enginehouse: Any, servers: Servers) -> None:
    engine = _engine(servers, None)
    assert "not quantized" in enginehouse("calibration", "show", engine).err
    assert enginehouse("calibration", "show", "nowhere").status == 3
    Path("bad.cache").write_text("TRT-8600-EntropyCalibration2\ninput 3f800000\n")
    refused = enginehouse("calibration", "import", "bad.cache")
    assert refused.status == 2 and "line 2" in refused.err
    Path("bad.json").write_bytes(b"\xff\x00")
    assert enginehouse("calibration", "show", "bad.json").status == 2
    assert enginehouse("calibration", "import", "none.json").status == 2
