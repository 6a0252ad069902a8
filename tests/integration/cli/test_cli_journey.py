"""The whole job by commands alone: up, optimize, load, infer, telemetry, down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack_world import need_environments, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]

COMMAND = [sys.executable, "-c", "from enginehouse.cli.entry import main; main()"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("ENGINEHOUSE_OPTIMIZER",)}
    return {**kept, "ENGINEHOUSE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_environments()
    return tmp_path_factory.mktemp("cli") / "home"


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Run]:
    def call(*arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        environment = _environment(home)
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, env=environment, cwd=home.parent, timeout=200
        )
        assert done.returncode == status or (status is None and done.returncode in (0, 1)), done.stderr
        assert "Traceback" not in done.stderr
        return done

    call("up", "--ports", "auto")
    yield call
    stopped = call("down", "--json")
    assert sorted(json.loads(stopped.stdout)) == ["inference", "optimizer", "telemetry"]
    call("status", status=1)


@pytest.fixture(scope="module")
def tiny(pytestconfig: pytest.Config) -> Path:
    return tiny_model(pytestconfig)


def test_from_a_file_to_answers(run: Run, tiny: Path) -> None:
    assert "runs already" in run("up", status=1).stderr
    assert all(service["serving"] for service in json.loads(run("status", "--json").stdout))
    optimized = run(
        *["optimize", str(tiny), "--precision", "fp32", "--precision", "int8"],
        *["--synthetic", "8", "--batch", "1:4:8", "--min-sqnr", "1", "--json"],
    )
    fp32, int8 = json.loads(optimized.stdout)
    assert (fp32["precision"], int8["precision"]) == ("fp32", "int8") and "calibrate" in optimized.stderr
    run("load", "tiny", int8["id"])
    assert "READY" in run("serving").stdout
    answer = json.loads(run("infer", "tiny", "--random", "--batch", "3", "--json").stdout)
    assert answer["outputs"]["scores"]["shape"] == [3, 10]
    assert "is served by tiny" in run("engines", "delete", int8["id"], status=1).stderr
    run("unload", "tiny")
    run("engines", "delete", int8["id"])
    job = json.loads(run("jobs", "list", "--json").stdout)[0]
    assert job["state"] == "succeeded" and run("jobs", "log", job["id"], "freeze").returncode == 0
    lines = run("telemetry", "--json", "--count", "2", "--period", "0.2").stdout.splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["host"]


# Of the same file, so that it is frozen and converted once for all tests here.
SUITE = """
name: tiny
models: [{{name: tiny, file: {file}}}]
modes: [onnxruntime-cpu-fp32, tensorrt-int8]
batches: [1]
scopes: [host, served]
measure: {{warmup_seconds: 0, window_seconds: 0.1, max_windows: 10, max_seconds: 2}}
calibration: {{synthetic: {{distribution: images, samples: 4}}}}
"""


def test_a_benchmark_and_its_report(run: Run, home: Path, tiny: Path) -> None:
    suite = home.parent / "tiny.yaml"
    suite.write_text(SUITE.format(file=tiny))
    done = run("bench", "run", str(suite), "--out", "results", "--json")
    summary = json.loads(done.stdout)
    # Without a GPU one mode of two is not run, and says why.
    assert summary["status"] == "complete" and summary["rows"] + len(summary["not_run"]) == 4 and summary["rows"] >= 2
    assert "4 rows to measure" in done.stderr and "onnxruntime-cpu-fp32 cpu batch 1 host" in done.stderr
    assert "holds results already" in run("bench", "run", str(suite), "--out", "results", status=1).stderr
    again = json.loads(run("bench", "run", str(suite), "--out", "results", "--resume", "--json").stdout)
    assert (again["rows"], again["new_rows"]) == (summary["rows"], 0)
    files = json.loads(run("report", "results", "--json").stdout)
    assert "onnxruntime-cpu-fp32" in (home.parent / files["html"]).read_text()
    assert "not testable here" in (home.parent / files["markdown"]).read_text()
    assert "nothing is served" in run("serving").stderr, "a benchmark takes back what it served"


def test_mlperfs_scenarios_of_an_engine_and_of_the_service(run: Run, home: Path, tiny: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    made = run("optimize", str(tiny), "--name", "scenarios", "--precision", "fp32", "--batch", "8", "--json")
    engine = json.loads(made.stdout)[0]["id"]
    lines = []
    for target, scenario in (("worker", "offline"), ("worker", "server"), ("service", "single_stream")):
        # Exit status 0 or 1 as LoadGen judges so short a run: only its result is looked at.
        arguments = ["--target", target, "--scenario", scenario, "--seconds", "0.5", "--batch", "8", "--latency", "1s"]
        done = run("bench", "loadgen", engine, "--out", "loadgen", *arguments, "--json", status=None)
        lines += json.loads(done.stdout)
    assert [line["scope"] for line in lines] == ["host", "host", "served"] and all(line["shortened"] for line in lines)
    assert lines[0]["ratio"] > 0 and lines[1]["target_qps"] > 0 and lines[2]["latency_ms"] > 0
    for line in lines:
        assert "Results Summary" in (home.parent / "loadgen" / line["logs"] / "mlperf_log_summary.txt").read_text()
    files = json.loads(run("report", "loadgen", "--json").stdout)
    assert "shortened to 0.5 s" in (home.parent / files["html"]).read_text()
    assert "nothing is served" in run("serving").stderr


def test_an_interrupt_cancels_the_job(run: Run, home: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "optimize", "vgg16"],
        env=_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(100):
        if "RUNNING" in run("jobs", "list", "--json").stdout.upper():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "to stop" in err, err
    assert json.loads(run("jobs", "list", "--json").stdout)[0]["state"] == "cancelled"
