"""The zoo's graphs, filled with random weights, parse and build in TensorRT for RTX, FP16 and INT8."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_placement_zoo import GRAPHS, zoo_graph
from test_tensorrt_rtx_builds import build, quantized


@pytest.mark.slow
def test_resnet_50_builds_in_fp8(tmp_path: Path) -> None:
    model = zoo_graph("resnet_v1_50").model
    weights = sum(len(t.raw_data) // 4 for t in model.graph.initializer)
    build(tmp_path, quantized(model, "FP8"), "FP8")
    assert (tmp_path / "fp8-engine" / "model.plan").stat().st_size < 1.2 * weights + (8 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["FP16", "INT8"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_zoo_builds(tmp_path: Path, name: str, precision: str) -> None:
    model = zoo_graph(name).model
    weights = 4 * sum(len(t.raw_data) // 4 for t in model.graph.initializer)
    build(tmp_path, quantized(model) if precision == "INT8" else model, precision)
    plan = tmp_path / f"{precision.lower()}-engine" / "model.plan"
    assert plan.stat().st_size < (0.3 if precision == "INT8" else 0.55) * weights + (8 << 20)
