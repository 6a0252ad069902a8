"""Calibration tables that were made elsewhere, and what `calibration.json` may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from enginehouse_worker.calibration.collect import tensors_to_calibrate
from enginehouse_worker.calibration.methods import Range
from enginehouse_worker.calibration.table import CalibrationTable, read_table
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.index import index_graph
from enginehouse_worker.stages import calibrate, quantize
from enginehouse_worker.stages.context import StageContext
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import residual_classifier

TENSORS = tensors_to_calibrate(index_graph(residual_classifier()))


def run(module: Any, output: Path, inputs: dict[str, Path], **params: Any) -> dict[str, Any]:
    output.mkdir()
    result: dict[str, Any] = module.run(StageContext(module.STAGE.name, inputs, output, params, lambda *_: None))
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    onnx.save(residual_classifier(), str(directory / "model.onnx"))
    return directory


def uploaded(directory: Path, names: list[str], digest: str = "", **changes: Any) -> Path:
    directory.mkdir()
    ranges = {name: Range(-1.0, 3.0, 2.5, -1.0, 2.5) for name in names}
    data = {"kind": "dataset", "digest": "sha256:d"}
    CalibrationTable("mse", None, digest, data, 9, ranges).write(directory)
    path = directory / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    # An upload has the name that its file had.
    path.rename(directory / "mine.json")
    return directory


def test_a_table_of_this_model_is_taken_and_quantizes_it(model: Path, tmp_path: Path) -> None:
    digest = file_digest(model / "model.onnx")
    table = uploaded(tmp_path / "table", ["more", *reversed(TENSORS)], digest)
    result = run(calibrate, tmp_path / "out", {"model": model, "table": table})
    assert result["method"] == "mse" and result["tensors"] == len(TENSORS)
    assert result["table"]["unknown_tensors"] == 1 and result["table"]["other_model"] is False
    found = CalibrationTable.read(tmp_path / "out")
    assert list(found.tensors) == list(TENSORS)
    assert found.samples == 9 and found.data["digest"] == "sha256:d"
    done = run(quantize, tmp_path / "int8", {"model": model, "calibration": tmp_path / "out"}, dialect="tensorrt")
    assert done["quantized_operators"]["Conv"] == 6


def test_a_table_of_another_model_needs_the_same_tensors(model: Path, tmp_path: Path) -> None:
    same = uploaded(tmp_path / "same", list(TENSORS), "sha256:other")
    result = run(calibrate, tmp_path / "out", {"model": model, "table": same})
    assert result["table"]["other_model"] is True and result["table"]["model_digest"] == "sha256:other"
    assert CalibrationTable.read(tmp_path / "out").model_digest == file_digest(model / "model.onnx")
    more = uploaded(tmp_path / "more", [*TENSORS, "more"], "sha256:other")
    with pytest.raises(WorkerError, match=r"another model.*more"):
        run(calibrate, tmp_path / "out2", {"model": model, "table": more})
    # A cache of TensorRT's names no model, and has tensors that need no range here.
    nobodys = uploaded(tmp_path / "nobodys", [*TENSORS, "more"])
    assert run(calibrate, tmp_path / "out3", {"model": model, "table": nobodys})["table"]["unknown_tensors"] == 1


def test_missing_tensors_are_listed(model: Path, tmp_path: Path) -> None:
    table = uploaded(tmp_path / "table", list(TENSORS[2:]))
    with pytest.raises(WorkerError, match="lacks 2 of") as caught:
        run(calibrate, tmp_path / "out", {"model": model, "table": table})
    assert caught.value.details["missing"] == list(TENSORS[:2])
    assert TENSORS[0] in caught.value.message


def test_a_table_excludes_data_and_parameters(model: Path, tmp_path: Path) -> None:
    table = uploaded(tmp_path / "table", list(TENSORS))
    with pytest.raises(WorkerError, match="method"):
        run(calibrate, tmp_path / "a", {"model": model, "table": table}, method="max")
    with pytest.raises(WorkerError, match="dataset"):
        run(calibrate, tmp_path / "b", {"model": model, "table": table, "dataset": table})


ENTRY = {"min": -1.0, "max": 1.0, "amax": 1.0, "rmin": -1.0, "rmax": 1.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "JSON"),
        ("[]", "list"),
        ("TRT-8600-EntropyCalibration2\ninput: 3caa5293\n", "calibration import"),
        ("[" * 100_000, "JSON"),
        ('{"format": "enginehouse.calibration/2"}', "format"),
        ('{"format": "enginehouse.calibration/1"}', "lacks"),
        ({"tensors": {}}, "no tensors"),
        ({"tensors": []}, "list"),
        ({"tensors": {"a": 1}}, "no object"),
        ({"tensors": {"a": {"min": 0}}}, "lacks max, amax"),
        ({"tensors": {"a": {**ENTRY, "min": 2.0}}}, "above"),
        ({"tensors": {"a": {**ENTRY, "rmax": -0.5}}}, "hold 0"),
        ({"tensors": {"a": {**ENTRY, "amax": -1.0}}}, "magnitude"),
        ({"tensors": {"a": {**ENTRY, "amax": "1"}}}, "number"),
        ({"tensors": {"a": {**ENTRY, "amax": 1e39}}}, "finite"),
        ({"tensors": {"a": {**ENTRY, "amax": 1e-44}}}, "below"),
        ({"tensors": {"a": {**ENTRY, "amax": float("nan")}}}, "NaN"),
        ({"samples": -1}, "samples"),
        ({"method": 3}, "method"),
        ({"data": {"\ud800": 1}}, "JSON"),
    ],
)
def test_malformed_tables_are_explained(text: str | dict[str, Any], expected: str, tmp_path: Path) -> None:
    if isinstance(text, dict):
        value = {
            "format": "enginehouse.calibration/1",
            "method": "max",
            "model_digest": "",
            "data": {},
            "samples": 1,
            "tensors": {"a": ENTRY},
        }
        text = json.dumps({**value, **text})
    (tmp_path / "table").write_text(text)
    with pytest.raises(WorkerError, match=expected) as caught:
        read_table(tmp_path / "table")
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(ENTRY)
    text = '{"format": "enginehouse.calibration/1", "tensors": {"a": %s, "a": %s}}' % (entry, entry)  # noqa: UP031
    (tmp_path / "table").write_text(text)
    with pytest.raises(WorkerError, match="'a' twice"):
        read_table(tmp_path / "table")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_tables_never_crash(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    directory = tmp_path_factory.getbasetemp()
    CalibrationTable("max", None, "", {}, 1, {"a": Range(-1.0, 3.0, 2.5, -1.0, 2.5)}).write(directory)
    data = bytearray((directory / "calibration.json").read_bytes())
    data[place % len(data)] = byte
    (directory / "damaged").write_bytes(data)
    try:
        read_table(directory / "damaged")
    except WorkerError as error:
        assert error.code == "INVALID_ARGUMENT"
