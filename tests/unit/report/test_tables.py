from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_fakes import lane, row

from enginehouse.bench.rows import Accuracy, Row
from enginehouse.bench.store import append_lines
from enginehouse.errors import InvalidArgumentError
from enginehouse.report.data import Results
from enginehouse.report.hardware import hardware_lines
from enginehouse.report.markdown import table
from enginehouse.report.tables import (
    accuracy_lines,
    most_efficient,
    scaling,
    scenario_lines,
    scope_lines,
    within_budget,
)
from enginehouse.report.write import write_report


def mode(name: str, rate: float, batch: int = 1, scope: str = "host", device: str | None = None, **more: Any) -> Row:
    return row(lane("resnet_v1_50", name, batch, scope, device), rate, **more)


def test_budget() -> None:
    rows = [mode("onnxruntime-cpu-fp32", rate, batch) for batch, rate in ((1, 500.0), (2, 600.0), (8, 700.0))]
    (within,), (without,) = within_budget(rows, 7.0, "mean"), within_budget(rows, 1.0, "mean")
    engine, host, served = within.cells
    assert engine is None and served is None and host is not None and host.row is not None
    assert host.row.lane.batch == 2
    assert without.cells[1] is not None and without.cells[1].row is None
    assert without.cells[1].lowest_latency_ms == pytest.approx(2)


def test_scopes_stand_beside_each_other_and_are_not_mixed() -> None:
    rows = [
        mode("tensorrt-int8", 900, scope="engine"),
        mode("tensorrt-int8", 700, scope="host"),
        mode("tensorrt-int8", 400, scope="served", device="gpu"),
        mode("tensorrt-int8", 300, batch=2, scope="host"),
    ]
    first, second = scope_lines(rows)
    assert [cell and cell.inferences_per_second for cell in first.cells] == [900, 700, 400]
    assert [cell and cell.inferences_per_second for cell in second.cells] == [None, 300, None]
    (line,) = within_budget(rows, 1000)
    assert [fit and fit.row and fit.row.lane.scope for fit in line.cells] == ["engine", "host", "served"]


def test_energy_is_said_only_where_power_is_known() -> None:
    rows = [mode("tensorrt-int8", 1000, power_w=100.0), mode("tensorrt-int8", 3000, batch=8, power_w=200.0)]
    rows.append(mode("onnxruntime-cpu-int8", 50))
    (best,) = most_efficient(rows)
    assert best.lane.batch == 8 and best.per_joule == 15 and best.joules == pytest.approx(1 / 15)


def test_scaling_needs_every_gpu_alone() -> None:
    alone = [mode("tensorrt-int8", rate, device=f"gpu:{n}") for n, rate in enumerate((100.0, 110.0))]
    together = mode("tensorrt-int8", 189, device="gpu:all", gpus=2)
    (found,) = scaling([*alone, together])
    assert found.efficiency == pytest.approx(0.9)
    assert scaling([alone[0], together]) == ()


def test_hardware_during_calibration_and_inference() -> None:
    def sample(second: int, utilization: float) -> dict[str, Any]:
        gpu = {"index": 0, "utilization_gpu_percent": utilization, "utilization_memory_percent": utilization / 2}
        return {"time": f"2026-01-01T00:00:{second:02}Z", "host": {"cpu_utilization_percent": 10.0}, "gpus": [gpu]}

    def span(low: int, high: int) -> dict[str, str]:
        return {"start": f"2026-01-01T00:00:{low:02}Z", "end": f"2026-01-01T00:00:{high:02}Z"}

    results = Results(
        rows=(mode("tensorrt-int8", 1000),), not_run=(), environments={}, run={}, engines=(),
        phases=({"kind": "calibrate", "name": "c", **span(0, 9)}, {"kind": "measure", "name": "m", **span(10, 40)}),
        samples=tuple(sample(second, 20 if second < 10 else 90 if second < 20 else 5) for second in range(40)),
        windows=({"mode": "tensorrt-int8", "device": "gpu:0", **span(10, 19)},),
    )  # fmt: skip
    found = {(line.what, line.device): line for line in hardware_lines(results)}
    assert set(found) == {("calibration", "CPU"), ("calibration", "GPU 0"), ("inference, tensorrt-int8", "GPU 0")}
    assert found["calibration", "GPU 0"].means.gpu_utilization == 20
    busy = found["inference, tensorrt-int8", "GPU 0"]
    assert (busy.means.gpu_utilization, busy.means.memory_utilization, busy.samples) == (90, 45, 10)


def test_markdown_cells_cannot_break_the_table() -> None:
    assert table(("a", "b"), [["1|2", "x\ny"]]).splitlines()[2] == "| 1\\|2 | x y |"


def test_loadgens_results_are_shown_as_it_judged_them(tmp_path: Path) -> None:
    line = {
        "engine": "projects/default/engines/e-1", "mode": "onnxruntime-cpu-int8", "scope": "host",
        "scenario": "offline",
        "batch": 4, "valid": False, "shortened": True, "seconds": 8.0, "inferences_per_second": 38.0, "ratio": 0.98,
        "percentiles_ms": {"99.00": 900.0}, "reasons": ["Processed too few."],
    }  # fmt: skip
    (found,) = scenario_lines([line])
    assert (found.engine, found.latency_ms, found.ratio) == ("e-1", 900, 0.98)
    with pytest.raises(InvalidArgumentError, match="'scenario' is missing"):
        scenario_lines([{name: value for name, value in line.items() if name != "scenario"}])
    append_lines(tmp_path / "loadgen.jsonl", [line])
    files = write_report(tmp_path)
    assert "shortened to 8 s" in files.html.read_text() and "Processed too few." in files.html.read_text()
    assert "| e-1 | host | offline | 4 | invalid, shortened to 8 s | 38.0 | 900 | 0.980 |" in files.markdown.read_text()


def test_accuracy_is_held_to_mlperfs_bar_where_there_are_labels() -> None:
    rows = [
        mode("tensorrt-int8", 1, accuracy=Accuracy("digits", top1=0.97, reference_top1=0.975)),
        mode("tensorrt-int8", 1, batch=2, accuracy=Accuracy("digits", top1=0.97, reference_top1=0.975)),
        mode("tf-trt-int8", 1, accuracy=Accuracy("digits", top1=0.90, reference_top1=0.975)),
        mode("onnxruntime-cpu-int8", 1, accuracy=Accuracy("synthetic", sqnr_db=30.0)),
        mode("tensorflow-cpu-fp32", 1),
    ]
    assert [(line.mode, line.reached) for line in accuracy_lines(rows)] == [
        ("tensorrt-int8", True), ("tf-trt-int8", False), ("onnxruntime-cpu-int8", None),
    ]  # fmt: skip
