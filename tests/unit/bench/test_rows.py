from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.bench.rows import Accuracy, Lane, NotRun, Row, to_line
from enginehouse.bench.statistics import Latency
from enginehouse.bench.store import append_lines, read_lines
from enginehouse.errors import InvalidArgumentError

numbers = st.floats(0.001, 1e9)
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
rows = st.builds(
    Row,
    lane=st.builds(
        Lane, texts, texts, texts, texts, texts, st.integers(1, 999), texts, st.integers(1, 99),
        st.none() | st.integers(1, 9), st.none() | st.booleans(),
    ),
    inferences_per_second=numbers,
    latency_ms=st.builds(Latency, *[numbers] * 6),
    interval=st.tuples(numbers, numbers),
    stable=st.booleans(),
    environment=texts,
    time=texts,
    round=st.none() | texts,
    windows=st.none() | st.integers(1, 99),
    cpu_ms=st.none() | numbers,
    power_w=st.none() | numbers,
    throttled=st.none() | st.booleans(),
    accuracy=st.none() | st.builds(Accuracy, texts, st.none() | numbers),
    command=st.none() | texts,
)  # fmt: skip


@given(rows)
def test_round_trip_and_absence(row: Row) -> None:
    value = json.loads(to_line(row.to_json()))
    assert Row.from_json(value) == row
    assert None not in value.values()
    assert ("power_w" in value) == (row.power_w is not None)


def test_a_row_without_a_required_key_says_which() -> None:
    with pytest.raises(InvalidArgumentError, match="'interval' is missing"):
        Row.from_json({"model": "m"})


def test_a_row_of_another_tool_gets_the_usual_mode_name() -> None:
    base = {
        "model": "m", "precision": "int8", "batch": 1, "scope": "engine", "inferences_per_second": 1, "interval": [1,
        1],
        "latency_ms": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 1), "stable": True,
        "environment": "e", "time": "t", "later": "ignored",
    }  # fmt: skip
    assert Row.from_json({**base, "backend": "tensorrt", "device": "gpu:1"}).lane.mode == "tensorrt-int8"
    assert Row.from_json({**base, "backend": "onnxruntime", "device": "cpu"}).lane.mode == "onnxruntime-cpu-int8"


def test_not_run_round_trip() -> None:
    entry = NotRun(Lane("m", "o", "b", "p", "cpu", 1, "host"), "why", "t", "NOT_FOUND")
    assert NotRun.from_json(json.loads(to_line(entry.to_json()))) == entry


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text("nonsense\n")
    with pytest.raises(InvalidArgumentError, match="line 1"):
        read_lines(path)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_line({"a": float("nan")})
