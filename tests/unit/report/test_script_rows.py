"""Rows of the scripts under benchmarks/ in a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_data import write_results

from enginehouse.bench.store import append_lines
from enginehouse.errors import InvalidArgumentError
from enginehouse.paper import load_paper
from enginehouse.report.claims import Verdict, judge
from enginehouse.report.data import load_results
from enginehouse.report.tables import accuracy_lines
from enginehouse.report.write import write_report

# As benchmarks/tensorrt_speed and benchmarks/tf_trt write them.
NATIVE: dict[str, Any] = {
    "model": "resnet_v1_50", "variant": "resnet_v1_50-int8", "backend": "tensorrt", "runtime": "engine",
    "precision": "INT8", "batch": 8, "scope": "host", "instances": 1, "cuda_graph": True,
    "inferences_per_second": 27000.0, "interval": [26800.0, 27100.0], "stable": True, "power_w": 300.0,
    "clocks_mhz": {"sm": 1980, "memory": 3201}, "throttled": False,
    "latency_ms": {"mean": 0.3, "p50": 0.3, "p90": 0.31, "p99": 0.33},
    "device": "NVIDIA H200", "sitting": "s1", "environment": "abc", "time": "t", "accuracy": {"sqnr_db": 34.0},
}  # fmt: skip
TF_TRT = {
    **NATIVE, "variant": "resnet_v1_50-tf-trt-int8", "mode": "tf-trt-int8", "backend": "tf-trt", "runtime": "worker",
    "inferences_per_second": 10000.0, "interval": [9900.0, 10100.0], "sitting": "s2",
    "latency_ms": {"mean": 0.8, "p50": 0.8, "p90": 0.8, "p95": 0.8, "p99": 0.9, "max": 1.0},
}  # fmt: skip
CPU = {**TF_TRT, "mode": "tensorflow-cpu-fp32", "backend": "tensorflow", "precision": "FP32", "device": "Intel Xeon"}
# As benchmarks/accuracy/evaluate.py writes them: how accurate, not how fast.
LABELLED: dict[str, Any] = {
    "model": "resnet_v1_50", "mode": "tensorrt-int8", "backend": "tensorrt", "precision": "INT8", "samples": 2000,
    "accuracy": {"data": "Fashion-MNIST", "top1": 0.9, "top5": 0.99, "reference_top1": 0.92, "reference_top5": 0.99},
    "share_of_fp32": 0.97826, "reaches_99_percent": False, "environment": "abc", "time": "t",
}  # fmt: skip
FACTS = {"cpu": "Intel Xeon", "cores": 16, "gpu": "NVIDIA H200", "driver": "580", "tensorrt": "8.6.0"}


def write(directory: Path, *rows: dict[str, Any]) -> Path:
    directory.mkdir()
    append_lines(directory / "rows.jsonl", rows)
    (directory / "environments.json").write_text(json.dumps({"abc": FACTS}))
    return directory


def test_a_scripts_rows_are_those_of_a_suite(tmp_path: Path) -> None:
    several = {name: value for name, value in NATIVE.items() if name != "latency_ms"} | {"instances": 3}
    implicit = {**NATIVE, "variant": "implicit", "runtime": "implicit"}
    pixels = {**NATIVE, "variant": "int8-uint8", "source": "int8-uint8"}
    torch = {**NATIVE, "variant": "torch", "backend": "pytorch", "runtime": "torch", "precision": "FP16"}
    torch["mode"] = "reduce-overhead"
    found = load_results(write(tmp_path / "a", NATIVE, TF_TRT, CPU, several, implicit, pixels, torch))
    lanes = {(row.lane.mode, row.lane.precision, row.lane.device) for row in found.rows}
    assert lanes == {
        ("tensorrt-int8", "int8", "gpu:0"), ("tf-trt-int8", "int8", "gpu:0"), ("tensorflow-cpu-fp32", "fp32", "cpu"),
        ("tensorrt-int8-implicit", "int8", "gpu:0"), ("tensorrt-int8-uint8", "int8", "gpu:0"),
        ("pytorch-gpu-fp16", "fp16", "gpu:0"),
    }  # fmt: skip
    native = next(row for row in found.rows if row.lane.mode == "tensorrt-int8")
    assert native.clocks_mhz == 1980 and native.latency_ms.p95 == 0.33 and native.per_joule == 90
    assert found.left_out == 1
    assert found.machine(native)["gpus"]["devices"][0]["product"] == "NVIDIA H200"


def test_a_row_without_the_mean_of_its_latencies_is_left_out(tmp_path: Path) -> None:
    """Rows that were written again from printed lines have the median and p99 alone."""
    printed = {**NATIVE, "latency_ms": {"p50": 0.3, "p99": 0.33}}
    found = load_results(write(tmp_path / "a", NATIVE, {**printed, "batch": 16}))
    assert len(found.rows) == 1 and found.left_out == 1


def test_committed_results_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "results"
    assert {row.lane.device for row in load_results(folder / "h200/onnxruntime-int8").rows} == {"cpu"}
    assert load_results(folder / "epyc-2-cores/demo").rows
    assert load_results(folder / "epyc-2-cores/accuracy").accuracies


def test_accuracy_that_was_measured_apart_stands_beside_speed(tmp_path: Path) -> None:
    cpu = {**LABELLED, "mode": "onnxruntime-cpu-int8", "backend": "onnxruntime", "accuracy": {"top1": 0.919,
           "reference_top1": 0.92}}  # fmt: skip
    speed, accuracy = write(tmp_path / "a", NATIVE), write(tmp_path / "b", LABELLED, cpu)
    found = load_results(speed, [accuracy])
    assert len(found.rows) == 1 and found.left_out == 0
    lines = accuracy_lines(found.rows, found.accuracies)
    assert [(line.mode, line.device, line.accuracy.data, line.reached) for line in lines] == [
        ("tensorrt-int8", "gpu:0", "synthetic", None),
        ("tensorrt-int8", "gpu:0", "Fashion-MNIST", False),
        ("onnxruntime-cpu-int8", "cpu", "labelled", True),
    ]
    assert [line.accuracy.samples for line in lines] == [None, 2000, 2000]
    files = write_report(speed, more=[accuracy], output=tmp_path / "out")
    assert "| resnet_v1_50 | tensorrt-int8 | Fashion-MNIST | 90.00 % | 99.00 % | 92.00 % | 97.83 % | missed |" in (
        files.markdown.read_text()
    )
    assert "below 99 %" in files.html.read_text()


def test_accuracy_measured_again_counts_once(tmp_path: Path) -> None:
    again = {**LABELLED, "accuracy": {**LABELLED["accuracy"], "top1": 0.915}}
    found = load_results(write(tmp_path / "a", LABELLED), [write(tmp_path / "b", again)])
    assert [line.accuracy.top1 for line in found.accuracies] == [0.915]


def test_accuracy_that_is_no_object_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"rows.jsonl line 1: result row: accuracy"):
        load_results(write(tmp_path / "a", {**LABELLED, "accuracy": 0.9}))


def test_results_of_one_machine_make_one_report(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", TF_TRT, CPU), write(tmp_path / "b", NATIVE)
    (second / "rows.jsonl").rename(second / "paper.jsonl")
    claims = {j.claim.id: j for j in judge(load_paper(), load_results(first, [second / "paper.jsonl"]))}
    assert claims["C3"].verdict is Verdict.CONFIRMED and "measured apart" in claims["C3"].why
    assert claims["C3"].measured == pytest.approx(2.7) == claims["C5"].measured
    alone = write_report(second / "paper.jsonl")
    assert alone.html.parent == second and "NVIDIA H200" in alone.html.read_text()


def test_a_measured_point_is_not_missing(tmp_path: Path) -> None:
    write_results(tmp_path / "cpu", telemetry=False)
    merged = load_results(tmp_path / "cpu", [write(tmp_path / "gpu", {**NATIVE, "batch": 1})])
    assert all((entry.lane.mode, entry.lane.batch) != ("tensorrt-int8", 1) for entry in merged.not_run)
    assert len(merged.not_run) == 5


def test_a_row_that_lacks_something_says_which(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"rows.jsonl line 1: key 'precision' is missing"):
        load_results(write(tmp_path / "a", {name: value for name, value in NATIVE.items() if name != "precision"}))
