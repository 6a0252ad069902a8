from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import lane, row
from report_data import write_results

from enginehouse.bench.rows import Row
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from enginehouse.paper import load_paper
from enginehouse.report.compare import compare, load_sets, to_json
from enginehouse.report.data import Results
from enginehouse.report.write_comparison import cells, columns, write_comparison


def results(*rows: Row, environments: Any = None) -> Results:
    return Results(rows, (), environments or {}, {}, (), (), ())


def mode(rate: float, batch: int = 1, name: str = "tensorrt-int8", **more: Any) -> Row:
    return row(lane("resnet_v1_50", name, batch), rate, **more)


def test_the_same_points_stand_beside_each_other() -> None:
    old = results(mode(100, confidence=0.95), mode(150, 2, confidence=0.95), mode(9, name="onnxruntime-cpu-int8"))
    new = results(mode(220, confidence=0.95), mode(400, 8))
    third = results(mode(300, 2, confidence=0.95))
    found = compare({"old": old, "new": new, "third": third})
    first, second = found.points
    assert (first.batch, second.batch) == (1, 2) and found.alone == (1, 1, 0)
    assert [ratio and ratio.value for ratio in first.ratios] == [1, 2.2, None]
    assert [ratio and ratio.value for ratio in second.ratios] == [1, None, 2]
    assert first.ratios[1] is not None and first.ratios[1].low < 2.2 < first.ratios[1].high
    assert len(columns(found)) == len(cells(first)) == len(cells(second))
    value = to_json(found)
    assert value["base"] == "old" and "third" not in value["points"][0]["sets"]
    assert value["points"][0]["sets"]["new"]["ratio"] == pytest.approx(2.2)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="share no point"):
        compare({"a": results(mode(1)), "b": results(mode(1, 2))})
    write_results(tmp_path / "a", telemetry=False)
    with pytest.raises(InvalidArgumentError, match="two result folders"):
        load_sets([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(NotFoundError, match="holds no results"):
        load_sets([tmp_path / "a", tmp_path / "none"])


def test_a_comparison_is_written(tmp_path: Path) -> None:
    for name in ("one/r", "two/r"):
        write_results(tmp_path / name, telemetry=False)
    sets = load_sets([tmp_path / "one/r", tmp_path / "two/r"])
    assert list(sets) == ["one/r", "two/r"], "folders of one name are told apart"
    files = write_comparison(compare(sets), tmp_path / "out", load_paper())
    text = files.markdown.read_text()
    assert "C8" in text and "Test CPU" in text and "1x (" in text
    assert len(json.loads(files.json.read_text())["points"]) == 12
    assert len(files.plots) == 3 and all(path.read_bytes().startswith(b"\x89PNG") for path in files.plots)
