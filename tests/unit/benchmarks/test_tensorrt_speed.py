"""The benchmark of TensorRT engines: what it keeps when it is cut, what it measures, and the tables made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
SPEED = BENCHMARKS / "tensorrt_speed"
sys.path.append(str(BENCHMARKS))

from tensorrt_speed import power, rows, table  # noqa: E402
from tensorrt_speed.builds import BuildFailed, Builds, recipe  # noqa: E402
from tensorrt_speed.campaign import Campaign  # noqa: E402
from tensorrt_speed.measure import arguments_of, run  # noqa: E402
from tensorrt_speed.runners import EngineRunner, TorchRunner, group_size  # noqa: E402
from tensorrt_speed.variants import Point, Variant, points, read_variants  # noqa: E402

WHOLE = {"min": 1, "opt": 4, "max": 8}


class Spec:
    """A tensor of a signature."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.dtype = name, shape, "FP32"


class Instance:
    """Doubles its input. A batch takes 0.05 ms of the "GPU", from the end of the batch before."""

    def __init__(self, broken_at: int) -> None:
        self.broken_at = broken_at
        self.ring, self.filled = 3, 0
        self.busy_until = 0.0
        self.closed = False

    def run(self, inputs: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
        return {"output": inputs["input"] * 2}

    def begin(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> int:
        assert self.filled < self.ring
        self.filled += 1
        return self.filled

    def finish(self, ticket: int) -> None:
        self.filled -= 1

    def launch(self, shapes: tuple[tuple[int, ...], ...], *, copies: bool = True) -> None:
        if shapes[0][0] == self.broken_at:
            raise RuntimeError("no such batch")
        self.busy_until = max(time.perf_counter(), self.busy_until) + 5e-5

    def wait(self) -> None:
        time.sleep(max(0.0, self.busy_until - time.perf_counter()))

    def close(self) -> None:
        self.closed = True


class Engine:
    """Stands in for a loaded engine."""

    def __init__(self, broken_at: int = 0) -> None:
        self.signature = type(
            "Signature", (), {"inputs": [Spec("input", (-1, 2))], "outputs": [Spec("output", (-1, 2))]}
        )
        self.broken_at = broken_at
        self.made: list[Instance] = []

    def new_instance(self) -> Instance:
        self.made.append(Instance(self.broken_at))
        return self.made[-1]

    def close(self) -> None:
        assert all(instance.closed for instance in self.made)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "net").mkdir(parents=True)
    images = np.arange(12, dtype=np.float32).reshape(6, 2) + 1
    np.savez(folder / "net" / "reference.npz", input=images, output=images * 2.02)
    return folder


def campaign(work: Path, variants: list[dict[str, Any]], *more: str) -> Campaign:
    """A run of the command on these variants, whose plans are there."""
    path = work / "variants.json"
    path.write_text(json.dumps({"defaults": {"model": "net", "profile": WHOLE}, "variants": variants}))
    given = ["--work", str(work), "--out", str(work / "out"), "--variants", str(path), "--host-python", sys.executable]
    found = read_variants(path)
    for variant in found:
        folder = work / "engines" / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        record = {"variant": variant.name, "recipe": recipe(variant), "build_seconds": 1.5, "plan_bytes": 7}
        (folder / "build.json").write_text(json.dumps(record))
    return Campaign(arguments_of([*given, "--seconds", "0.01", "--rounds", "3", *more]), found)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    """What is loaded, by the plan's name."""
    found: dict[str, Engine] = {"whole": Engine(), "broken": Engine(broken_at=4)}

    def load(folder: Path, options: dict[str, Any]) -> EngineRunner:
        return EngineRunner(found[folder.name])

    monkeypatch.setattr(EngineRunner, "load", load)
    return found


def test_points_are_measured_in_turns_and_the_rest_goes_on_when_one_fails(
    work: Path, engines: dict[str, Engine]
) -> None:
    scopes = {"engine": [1, 2], "host": [1]}
    variants = [
        {"name": "broken", "batches": [1, 4], "scopes": scopes},
        {"name": "whole", "batches": [1, 4], "scopes": scopes},
    ]
    measured = campaign(work, variants)
    run(measured)
    found = rows.read(work / "out" / "rows.jsonl")
    assert len(found) == 9
    assert set(measured.failed) == {"broken"}
    assert {row["batch"] for row in table.select(found, variant="broken")} == {1}
    for row in found:
        # 0.05 ms a batch on each instance, and no window is longer than its batches.
        assert 0 < row["inferences_per_second"] <= row["batch"] * row["instances"] / 5e-5
        assert row["interval"][0] <= row["inferences_per_second"] <= row["interval"][1]
        assert ("latency_ms" in row) == (row["instances"] == 1)
        assert row["accuracy"]["sqnr_db"] == pytest.approx(40.1, abs=0.1)
        assert row["build_seconds"] == 1.5
    assert all(instance.closed for engine in engines.values() for instance in engine.made)
    environments = json.loads((work / "out" / "environments.json").read_text())
    assert {row["environment"] for row in found} == set(environments)


def test_a_run_that_was_cut_goes_on_where_it_ended(work: Path, engines: dict[str, Engine]) -> None:
    variants = [{"name": "whole", "batches": [1, 4], "scopes": {"engine": [1]}}]
    run(campaign(work, variants))
    path = work / "out" / "rows.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}")  # cut in the middle of a line
    again = campaign(work, variants)
    assert [p.batch for v in again.variants for p in again.missing(v)] == [4]
    run(again)
    found = rows.read(path)
    assert [row["batch"] for row in found] == [1, 4]
    assert found[0] == json.loads(first)
    engines.clear()
    run(campaign(work, variants))  # loads nothing


def test_nothing_is_begun_after_the_deadline(work: Path, engines: dict[str, Engine]) -> None:
    run(campaign(work, [{"name": "whole", "batches": [1]}], "--deadline", "0"))
    assert rows.read(work / "out" / "rows.jsonl") == []


def test_builds_leave_the_time_that_measuring_takes(work: Path, engines: dict[str, Engine]) -> None:
    variants = [{"name": name, "batches": [1, 4]} for name in ("whole", "other")]
    slow = campaign(work, variants, "--deadline", "30", "--seconds", "3")
    (work / "engines" / "other" / "build.json").unlink()
    slow.build()  # 4 points of 3 rounds of 4.5 s and more
    assert "measuring comes first" in slow.failed["other"]


def test_an_engine_for_larger_batches_is_fed_whole_batches() -> None:
    runner = EngineRunner(Engine())
    images = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(runner.outputs(images, 4, 4), images * 2)
    np.testing.assert_array_equal(runner.outputs(images, 8, 8), images * 2)


def test_the_repositorys_variants_are_sound() -> None:
    for path in sorted((SPEED / "variants").glob("*.json")):
        assert read_variants(path), path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a", "batches": [1], "sorce": "int8"}], "sorce"),
        ([{"name": "a", "batches": [9]}], "outside of its profile"),
        ([{"name": "a", "batches": [1]}, {"name": "a", "batches": [1]}], "twice"),
        ([{"name": "a", "batches": [1], "kind": "direct", "plan": "b"}], "runs the plan 'b'"),
        ([{"name": "a", "batches": [1], "scopes": {"network": [1]}}], "scopes"),
    ],
)
def test_bad_variants_are_refused_by_name(tmp_path: Path, entries: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "variants.json"
    path.write_text(json.dumps({"defaults": {"model": "net", "profile": WHOLE}, "variants": entries}))
    with pytest.raises(ValueError, match=message):
        read_variants(path)


def test_points_are_every_batch_scope_and_number_of_instances() -> None:
    variant = Variant("a", "net", batches=(1, 2), scopes={"engine": (1, 3), "host": (2,)})
    assert points(variant)[:3] == [Point("a", 1, "engine", 1), Point("a", 1, "engine", 3), Point("a", 1, "host", 2)]
    assert len(points(variant)) == 6


def test_groups_of_launches_are_neither_short_nor_endless() -> None:
    assert [group_size(seconds) for seconds in (0.0, 0.002, 1.0)] == [128, 50, 8]


def test_a_build_that_fails_or_hangs_costs_itself_alone(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "builder.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "for line in sys.stdin:\n"
        "    request = json.loads(line)\n"
        "    print('a message of the library')\n"
        "    output = pathlib.Path(request['output'])\n"
        "    if request['precision'] == 'HANG': time.sleep(60)\n"
        "    if request['precision'] == 'CRASH': print('out of luck', file=sys.stderr); sys.exit(3)\n"
        "    if request['precision'] == 'BAD': print('BUILT ' + json.dumps({'error': 'no such precision'}), flush=True); continue\n"  # noqa: E501
        "    cache = request['timing_cache'] and pathlib.Path(request['timing_cache'], 'timing.cache')\n"
        "    known = cache.read_text() if cache and cache.exists() else ''\n"
        "    output.joinpath('model.plan').write_text('plan')\n"
        "    output.joinpath('timing.cache').write_text(known + 'x')\n"
        "    print('BUILT ' + json.dumps({'build_seconds': 9.0 - len(known)}), flush=True)\n"
    )
    monkeypatch.setattr("tensorrt_speed.builds.__file__", str(script))
    builds = Builds(work, limit_seconds=60.0)

    def variant(name: str, precision: str = "FP16", *, cold: bool = False) -> Variant:
        return Variant(name, "net", precision=precision, profile=WHOLE, batches=(1,), cold=cold)

    try:
        first = builds.build(variant("cold", cold=True))
        assert (first["build_seconds"], first["build_seconds_again"], first["plan_bytes"]) == (9.0, 8.0, 4)
        assert builds.known(variant("cold", cold=True)) == first
        assert builds.known(variant("cold", "FP32", cold=True)) is None
        hasty = Builds(work, limit_seconds=0.3)
        for one, precision, message in (
            (hasty, "HANG", "longer than 0 s"),
            (builds, "CRASH", r"(?s)ended \(3\).*out of luck"),
            (builds, "BAD", "no such precision"),
        ):
            with pytest.raises(BuildFailed, match=message):
                one.build(variant("bad", precision))
        # The cache of the first build serves the next, which adds to it.
        assert builds.build(variant("next"))["build_seconds"] == 8.0
        assert builds.build(variant("third"))["build_seconds"] == 7.0
        assert (work / "cache" / "timing.cache").read_text() == "xxx"
    finally:
        builds.close()


def test_pytorch_answers_or_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "torch_server.py"
    script.write_text(
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    name = line.split()[0]\n"
        "    if line == 'warm 3\\n': time.sleep(60)\n"
        "    if line == 'warm 2\\n': print('{\"error\": \"out of memory\"}', flush=True); continue\n"
        "    print({'warm': '{\"compile_seconds\": 3.0}', 'window': '{\"rate\": 7.0}', 'latency': '{\"milliseconds\": [1, 2]}'}[name], flush=True)\n"  # noqa: E501
    )
    monkeypatch.setattr("tensorrt_speed.runners.__file__", str(tmp_path / "runners.py"))
    runner = TorchRunner(sys.executable, "default", tmp_path, limit_seconds=60.0)
    try:
        runner.warm(1, "engine", 1)
        assert runner.facts == {"mode": "default", "compile_seconds": 3.0}
        assert runner.rate(1, "engine", 1, 0.1) == 7.0
        assert runner.latencies(1, "engine", 0.1) == [1.0, 2.0]
        with pytest.raises(RuntimeError, match="out of memory"):
            runner.warm(2, "engine", 1)
        runner._limit = 0.3
        with pytest.raises(RuntimeError, match="in time"):
            runner.warm(3, "engine", 1)
        with pytest.raises(RuntimeError, match="ended"):
            runner.rate(1, "engine", 1, 0.1)
    finally:
        runner.close()


def test_telemetry_is_of_the_windows_alone_and_absent_without_samples() -> None:
    samples = [
        {"monotonic": 1.0, "power_w": 100.0, "sm_mhz": 345, "reasons": ["sw_power_cap"]},  # before
        {"monotonic": 2.05, "power_w": 200.0, "sm_mhz": 345, "reasons": []},  # the window's first moment
        {"monotonic": 2.2, "power_w": 600.0, "sm_mhz": 1980, "memory_mhz": 3201, "reasons": []},
        {"monotonic": 2.4, "power_w": 650.0, "sm_mhz": 1970, "memory_mhz": 3201, "reasons": []},
        {"monotonic": 5.4, "power_w": 700.0, "sm_mhz": 1900, "reasons": ["sw_power_cap"]},
    ]
    found = power.summary(samples, [(2.0, 2.5)])
    assert found == {
        "power_w": 625.0,
        "clocks_mhz": {"sm": 1975, "memory": 3201},
        "throttled": False,
        "telemetry_samples": 2,
    }
    assert power.summary(samples, [(2.0, 2.5), (5.2, 5.5)])["throttle_reasons"] == ["sw_power_cap"]
    assert power.summary(samples, [(8.0, 9.0)]) == {}


def test_without_a_gpu_the_sampler_says_so_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, str(SPEED / "power.py"), "--out", str(tmp_path / "samples.jsonl")]
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 1
    assert "nothing reads the GPU's power" in done.stderr


def test_percentiles_are_values_that_were_measured() -> None:
    found = rows.latency([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p90"], found["p99"], found["max"]) == (50.0, 90.0, 99.0, 100.0)
    assert rows.latency([3.0])["p99"] == 3.0


def result(variant: str, rate: float, batch: int = 128, **values: Any) -> dict[str, Any]:
    """A row of ResNet-50 v1.5."""
    row = {"model": "resnet50-v1.5", "variant": variant, "runtime": "engine", "precision": "INT8", "source": "int8"}
    row |= {"batch": batch, "scope": "engine", "instances": 1, "inferences_per_second": rate, "sitting": "s"}
    return {**row, "build_seconds": 40.0, "plan_bytes": 30_000_000, **values}


def test_the_table_says_which_bars_are_met() -> None:
    found = [
        result("int8", 66_000.0, build_seconds_again=8.0, power_w=600.0, images_per_second_per_watt=110.0),
        result("implicit", 65_000.0, runtime="implicit"),
        result("implicit", 90_000.0, runtime="implicit", sitting="another"),
        result("direct", 68_000.0, runtime="direct"),
        result("int8", 71_000.0, 256),
        result("int8", 2_400.0, 1, latency_ms={"p50": 0.39, "p99": 0.5}),
        result("int8-instances", 72_500.0, 256, instances=3),
        result("int8-uint8", 60_000.0, source="int8-uint8"),
        result("int8-uint8", 58_000.0, source="int8-uint8", scope="host", instances=2),
        result("fp16", 39_000.0, source="fp32", precision="FP16"),
        result("torch", 27_000.0, source="fp32", precision="FP16", runtime="torch", mode="default"),
    ]
    lines = table.bars(found).splitlines()

    def verdict(beginning: str) -> tuple[str, str]:
        (line,) = [line for line in lines if line.startswith(f"| {beginning}")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        return cells[2], cells[3]

    assert verdict("INT8 Q/DQ over TensorRT's own calibration, int8, batch 128") == ("1.015", "met")
    assert verdict("our runtime over TensorRT alone, int8, batch 128") == ("0.971", "**not met**")
    assert verdict("INT8 engine only, batch 128") == ("66,000", "met")
    assert verdict("INT8 engine only, batch 256") == ("71,000", "**not met**")
    assert verdict("INT8 maximum, images/s (int8-instances, batch 256, 3 instances)") == ("72,500", "")
    assert verdict("INT8 batch 1, median ms") == ("0.3900", "met")
    assert verdict("its p99 over its median") == ("1.28", "**not met**")
    assert verdict("UINT8 host to host over engine only, INT8, batch 128") == ("0.967", "met")
    assert verdict("FP16 (fp16) over PyTorch") == ("1.44", "met")
    assert verdict("INT8 (int8) over PyTorch") == ("2.44", "met")
    assert verdict("second build") == ("0.20", "met")
    whole = table.every_row(found)
    assert "| resnet50-v1.5 | int8 | 128 | 1 | 66,000 |  |  | 600 | 110.0 |" in whole
    assert table.tables([]) == ""


def test_models_of_a_group_are_measured_in_turns() -> None:
    variants = read_variants(SPEED / "variants" / "c7.json")
    assert len({v.model for v in variants}) == 2
    assert {v.turn for v in variants} == {"c7"}
    assert Variant("alone", "vgg16").turn == "vgg16"
