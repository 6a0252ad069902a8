"""Calibration tables as files: our JSON, TensorRT's cache, and their differences."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.calibration import (
    CalibrationTable,
    TensorRange,
    cache_text,
    differences,
    read_cache,
    read_table,
    table_text,
)
from enginehouse.errors import InvalidArgumentError

# Names as graphs have them: with colons, spaces and letters of any script, but no line breaks.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20)
SCALES = st.floats(2.0**-100, 2.0**100, width=32)


def symmetric(amax: float) -> TensorRange:
    return TensorRange(-amax, amax, amax, -amax, amax)


@given(st.dictionaries(NAMES, SCALES, min_size=1, max_size=8))
def test_a_cache_comes_back_to_the_last_bit(scales: dict[str, float]) -> None:
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    text = "\n".join(["TRT-8600-EntropyCalibration2", *lines, ""])
    table = read_cache(text)
    assert list(table.tensors) == list(scales)
    assert cache_text(table) == text
    # Also by way of our file.
    assert cache_text(read_table(table_text(table))) == text


@given(st.dictionaries(NAMES, st.tuples(st.floats(0, 1e30), st.floats(0, 1e30)), min_size=1, max_size=8))
def test_a_table_comes_back_from_its_file(ends: dict[str, tuple[float, float]]) -> None:
    tensors = {}
    for name, (low, high) in ends.items():
        low, high = (float(f"{v:.9g}") if v > 1e-30 else 0.0 for v in (low, high))
        tensors[name] = TensorRange(-low, high, max(low, high), -low, high)
    table = CalibrationTable("percentile", tensors, "sha256:0", {"kind": "dataset"}, 12, 99.99)
    text = table_text(table)
    assert read_table(text) == table
    assert list(read_table(text).tensors) == list(tensors)
    assert sum(line.startswith("    ") for line in text.split("\n")) == len(tensors)


def test_the_scale_is_amax_over_127_as_an_fp32_number_most_significant_byte_first() -> None:
    text = cache_text(CalibrationTable("max", {"input": symmetric(127.0), "always zero": symmetric(0.0)}))
    assert text.splitlines() == ["TRT-8600-EntropyCalibration2", "input: 3f800000", "always zero: 3c010204"]
    assert np.frombuffer(bytes.fromhex("3c010204"), ">f4")[0] == np.float32(1 / 127)


@pytest.mark.parametrize(
    ("header", "method"),
    [
        ("TRT-8600-EntropyCalibration2", "entropy"),
        ("TRT-7103-EntropyCalibration", "entropy"),
        ("TRT-100300-MinMaxCalibration", "max"),
        ("TRT-5105-LegacyCalibration", "LegacyCalibration"),
    ],
)
def test_headers_say_the_method(header: str, method: str) -> None:
    # Windows' line ends, an empty line, fewer than eight digits, a colon and a space in a name.
    table = read_cache(f"{header}\r\ninput:0: 3caa5293\r\n\r\n(Unnamed Layer* 3) [Conv]_output: 3C010a14\r\n")
    assert table.method == method
    assert list(table.tensors) == ["input:0", "(Unnamed Layer* 3) [Conv]_output"]
    assert table.tensors["input:0"].amax == pytest.approx(127 * 0.0207913, rel=1e-4)
    assert (table.data["kind"], table.data["header"], table.model_digest) == ("tensorrt_cache", header, "")
    assert cache_text(table, header).splitlines()[0] == header


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1"),
        ("input: 3caa5293\n", "line 1"),
        ("TRT-8600-EntropyCalibration2\n", "no tensors"),
        ("TRT-8600-EntropyCalibration2\na: 3caa5293\nb\n", "line 3.*'b'"),
        ("TRT-8600-EntropyCalibration2\na: 3caa52939\n", "line 2"),
        ("TRT-8600-EntropyCalibration2\na: 3caaxyz\n", "line 2"),
        ("TRT-8600-EntropyCalibration2\n\na: 3caa5293\na: 3caa5293\n", "line 4.*twice"),
        ("TRT-8600-EntropyCalibration2\na: 7f800000\n", "line 2.*inf"),
        ("TRT-8600-EntropyCalibration2\na: 7fc00000\n", "line 2.*nan"),
        ("TRT-8600-EntropyCalibration2\na: bf800000\n", "line 2.*-1"),
        ("TRT-8600-EntropyCalibration2\na: 00000001\n", "line 2.*narrow"),
    ],
)
def test_malformed_caches_name_the_line(text: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected):
        read_cache(text)


def test_what_a_cache_cannot_say_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="line"):
        cache_text(CalibrationTable("max", {"a\nb": symmetric(1.0)}))
    with pytest.raises(InvalidArgumentError, match="header"):
        cache_text(CalibrationTable("max", {"a": symmetric(1.0)}), "TRT")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "x"}, "format"),
        ({"tensors": {}}, "no tensors"),
        ({"tensors": {"a": {"min": 0}}}, "needs min, max"),
        ({"tensors": {"a": {"min": 2, "max": 1, "amax": 1, "rmin": 0, "rmax": 1}}}, "above"),
        ({"tensors": {"a": {"min": 0, "max": 1, "amax": -1, "rmin": 0, "rmax": 1}}}, "magnitude"),
        ({"tensors": {"a": {"min": 0, "max": 1, "amax": 1, "rmin": 0.5, "rmax": 1}}}, "hold 0"),
        ({"tensors": {"a": {"min": 0, "max": 1, "amax": math.inf, "rmin": 0, "rmax": 1}}}, "finite"),
        ({"tensors": {"a": {"min": 0, "max": 1, "amax": True, "rmin": 0, "rmax": 1}}}, "finite"),
        ({"data": []}, "data"),
        ({"samples": math.nan}, "samples"),
    ],
)
def test_malformed_tables_are_explained(change: dict[str, object], expected: str) -> None:
    value = json.loads(table_text(CalibrationTable("max", {"a": symmetric(1.0)})))
    with pytest.raises(InvalidArgumentError, match=expected):
        read_table(json.dumps({**value, **change}))


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_files_never_crash(place: int, byte: int) -> None:
    table = CalibrationTable("max", {"input": symmetric(1.5), "b": TensorRange(0.0, 2.0, 2.0, 0.0, 2.0)})
    for text, read in ((table_text(table), read_table), (cache_text(table), read_cache)):
        data = bytearray(text.encode())
        data[place % len(data)] = byte
        try:
            read(data.decode(errors="replace"))
        except InvalidArgumentError:
            continue


def test_differences_are_ratios_the_largest_first() -> None:
    first = CalibrationTable(
        "max", {"a": symmetric(1.0), "b": symmetric(2.0), "c": symmetric(1.0), "z": symmetric(0.0)}
    )
    second = CalibrationTable(
        "entropy",
        {"a": symmetric(1.0), "b": symmetric(1.0), "c": TensorRange(0, 1, 1.0, 0.0, 0.5), "z": symmetric(0.0)},
    )
    found = differences(first, second)
    assert [(d.tensor, d.symmetric, d.asymmetric) for d in found] == [
        ("c", 1.0, 0.25),
        ("b", 0.5, 0.5),
        ("a", 1.0, 1.0),
        ("z", 1.0, 1.0),
    ]
    assert [d.size for d in found] == [2.0, 1.0, 0.0, 0.0]
    (missing,) = differences(first, CalibrationTable("max", dict(list(first.tensors.items())[1:])))[:1]
    assert (missing.tensor, missing.second, missing.symmetric) == ("a", None, None)


def test_the_worker_writes_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "worker"))
    from enginehouse_worker.calibration import table as worker
    from enginehouse_worker.calibration.methods import Range

    ranges = {"in:0": (-1.25, 3.0000001, 3.0, -1.0, 2.5e-7), "é": (0.0, 0.0, 0.0, 0.0, 0.0)}
    data = {"kind": "dataset", "digest": "sha256:1"}
    tensors = {name: Range(*value) for name, value in ranges.items()}
    worker.CalibrationTable("percentile", 99.9, "sha256:2", data, 7, tensors).write(tmp_path)
    ours = CalibrationTable(
        "percentile", {name: TensorRange(*value) for name, value in ranges.items()}, "sha256:2", data, 7, 99.9
    )
    assert (tmp_path / "calibration.json").read_text() == table_text(ours)
    assert worker.CalibrationTable.read(tmp_path).tensors["in:0"].rmax == 2.5e-7
