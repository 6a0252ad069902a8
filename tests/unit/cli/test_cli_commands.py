"""Commands against small servers: what they print where, and their exit status."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_servers import PROJECT, Servers
from rich.console import Console

from enginehouse.bench.rows import Lane, NotRun
from enginehouse.bench.seams import RunSummary
from enginehouse.cli import completion, context
from enginehouse.cli.commands.infer import random_inputs, summary
from enginehouse.cli.measuring import measuring
from enginehouse.cli.options import pairs, profile
from enginehouse.cli.output import print_json, size
from enginehouse.client.values import BatchProfile, ModelSignature, TensorSpec
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.v1 import engines_pb2, models_pb2, optimizer_pb2

ENGINE = f"{PROJECT}/engines/m-onnxruntime-fp32-0123456789ab"


def _engine(servers: Servers) -> None:
    engine = engines_pb2.Engine(
        name=ENGINE, model="projects/default/models/m", backend="onnxruntime", precision=engines_pb2.PRECISION_FP32
    )
    engine.files.add(path="model.onnx", digest=servers.blobs.add(b"engine"), size_bytes=6)
    engine.manifest_digest = servers.blobs.add(b'{"key": "k"}')
    engine.verification.top1 = 0.75
    servers.engines.engines[ENGINE] = engine
    servers.optimizer.engines = [engine]


def test_models(enginehouse: Any, tmp_path: Path) -> None:
    Path("Net.onnx").write_bytes(b"model")
    done = enginehouse("models", "upload", "Net.onnx", "--label", "a=b", "--json")
    assert done.status == 0 and json.loads(done.out)["labels"] == {"a": "b"} and done.err == ""
    assert enginehouse("models", "upload", "Net.onnx").err.startswith("uploaded net (onnx")
    table = enginehouse("models", "list").out.splitlines()
    assert table[0].split() == ["MODEL", "FORMAT", "SIZE", "CREATED", "FILE"] and table[1].split()[0] == "net"
    assert [model["id"] for model in json.loads(enginehouse("models", "list", "--json").out)] == ["net"]
    assert "file_name   Net.onnx" in enginehouse("models", "show", "net").out
    assert enginehouse("models", "delete", "net").status == 0
    empty = enginehouse("models", "list")
    assert (empty.status, empty.out) == (0, "") and "models upload FILE" in empty.err
    assert enginehouse("models", "list", "--json").out.strip() == "[]"


def test_errors_are_a_line_and_a_status(enginehouse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = enginehouse("models", "show", "none")
    assert missing.status == 3 and missing.out == ""
    assert missing.err.splitlines()[0] == "enginehouse: there is no projects/default/models/none"
    assert missing.err.splitlines()[1].startswith("hint: ") and "Traceback" not in missing.err
    assert enginehouse("models", "show").status == 2
    assert enginehouse("nonsense").status == 2
    assert enginehouse("models", "upload", "none.onnx").status == 2
    away = enginehouse("--optimizer", "127.0.0.1:1", "models", "list")
    assert away.status == 4 and "no server answers at 127.0.0.1:1" in away.err
    with pytest.raises(Exception, match="there is no"):
        enginehouse("--debug", "models", "show", "none")


def test_every_command_has_help_with_an_example(enginehouse: Any) -> None:
    groups = {"models", "datasets", "jobs", "engines", "bench"}
    alone = ["up", "down", "status", "optimize", "load", "unload", "serving", "infer", "telemetry", "report", "demo"]
    for command in [*groups, *alone, "version"]:
        shown = enginehouse(command, "--help")
        assert shown.status == 0 and "Usage: enginehouse" in shown.out, command
        if command in alone:
            assert "Example" in shown.out, command


def test_optimize_a_file_shows_its_stages(enginehouse: Any, servers: Servers) -> None:
    _engine(servers)
    Path("net.onnx").write_bytes(b"model")
    np.savez("data.npz", x=np.zeros((4, 3), np.float32))
    done = enginehouse(
        *["optimize", "net.onnx", "--precision", "fp32", "--precision", "int8", "--batch", "1:2:4"],
        *["--calibration-data", "data.npz", "--method", "percentile", "--option", "a=b"],
    )
    assert done.status == 0 and "m-onnxruntime-fp32-0123456789ab" in done.out and "0.75" in done.out
    assert "uploaded net" in done.err and "\nfreeze: " in done.err
    (request,) = servers.optimizer.requests
    assert [(t.backend, t.precision, t.profile.max) for t in request.targets] == [
        ("onnxruntime", engines_pb2.PRECISION_FP32, 4),
        ("onnxruntime", engines_pb2.PRECISION_INT8, 4),
    ]
    assert request.calibration.dataset == f"{PROJECT}/datasets/data"
    assert request.calibration.method == optimizer_pb2.CALIBRATION_METHOD_PERCENTILE
    assert request.calibration.percentile == 0, "the server's own"
    as_json = enginehouse("optimize", "net", "--json")
    assert json.loads(as_json.out)[0]["name"] == ENGINE


def test_optimize_makes_a_zoo_model_when_there_is_no_other(enginehouse: Any, servers: Servers) -> None:
    assert enginehouse("optimize", "vgg16", "--seed", "3", "--detach", "--json").status == 0
    assert servers.models.models[f"{PROJECT}/models/vgg16"].zoo.seed == 3


def test_optimize_takes_the_model_when_a_folder_of_its_name_holds_none(enginehouse: Any, servers: Servers) -> None:
    Path("digits").mkdir()
    assert "no saved_model.pb" in enginehouse("optimize", "digits", "--detach").err
    name = f"{PROJECT}/models/digits"
    servers.models.models[name] = models_pb2.Model(name=name)
    assert enginehouse("optimize", "digits", "--detach").status == 0
    assert servers.optimizer.requests[-1].model == name
    assert "no saved_model.pb" in enginehouse("optimize", "./digits", "--detach").err


def test_optimize_refuses_what_cannot_be_meant(enginehouse: Any) -> None:
    assert "need calibration" in enginehouse("optimize", "m", "--precision", "int8").err
    assert enginehouse(*["optimize", "m", "--synthetic", "4", "--calibration-data", "d"]).status == 2
    assert "there is no file" in enginehouse("optimize", "some/where.onnx").err
    assert "expected one of fp32" in enginehouse("optimize", "vgg16", "--precision", "int4").err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "max"], "--method is of calibration"),
        (["--exclude", "Gemm", "--auto-exclude"], "--exclude, --auto-exclude is of calibration"),
        (["--max-samples", "3"], "--max-samples is of calibration"),
        (["--precision", "INT8"], "need calibration"),
        (["--calibration-table", "t.json", "--method", "mse"], "does not go with --calibration-table"),
        (["--calibration-table", "t.json", "--max-samples", "3"], "does not go with --calibration-table"),
        (["--synthetic", "4", "--percentile", "99"], "is for --method percentile"),
        (["--synthetic", "4", "--method", "max", "--percentile", "99"], "is for --method percentile"),
        (["--calibration-data", "d", "--distribution", "images"], "--distribution is of made-up samples"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    enginehouse: Any, servers: Servers, options: list[str], words: str
) -> None:
    refused = enginehouse("optimize", "vgg16", *options)
    assert refused.status == 2 and words in refused.err
    assert servers.optimizer.requests == []


def test_a_failed_job_names_its_log(enginehouse: Any, servers: Servers) -> None:
    servers.optimizer.error = FailedPreconditionError("accuracy too low")
    done = enginehouse("optimize", "vgg16")
    assert done.status == 1 and "enginehouse: accuracy too low" in done.err and done.out == ""


def test_ctrl_c_cancels_the_job_and_a_second_one_leaves_it(enginehouse: Any, servers: Servers) -> None:
    servers.optimizer.hang = True

    def wait_for(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)

    def interrupt() -> None:
        wait_for(lambda: servers.optimizer.watches)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: len(servers.optimizer.watches) > 1)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=interrupt)
    user.start()
    done = enginehouse("optimize", "vgg16")
    user.join()
    assert done.status == 130 and servers.optimizer.cancelled
    assert "asking job-1 to stop" in done.err and done.out == ""


def test_jobs(enginehouse: Any) -> None:
    assert "job-1" in enginehouse("jobs", "list").out
    assert json.loads(enginehouse("jobs", "show", "job-1", "--json").out)["state"] == "succeeded"
    assert enginehouse("jobs", "log", "job-1", "freeze").out == "log of freeze"
    assert enginehouse("jobs", "cancel", "job-1").status == 0
    assert enginehouse("jobs", "watch", "job-1").status == 0
    assert enginehouse("jobs", "show", "job-2").status == 3
    shown = enginehouse("jobs", "show", "job-1").out
    assert "12.5" in shown and "3.0 GiB" in shown and "1 of 1 stages reused" in shown


def test_jobs_are_listed_by_state_and_model_and_retried(enginehouse: Any, servers: Servers) -> None:
    _engine(servers)
    enginehouse("jobs", "list", "--state", "failed", "--model", "m", "--filter", "done=true")
    assert servers.optimizer.filters == [f'state=FAILED AND model="{PROJECT}/models/m" AND done=true']
    assert json.loads(enginehouse("jobs", "retry", "job-1", "--detach", "--json").out)["id"] == "job-1"
    assert ENGINE.rsplit("/", 1)[1] in enginehouse("jobs", "retry", "job-1").out
    assert [request.name for request in servers.optimizer.retries] == [f"{PROJECT}/operations/job-1"] * 2


def test_engines(enginehouse: Any, servers: Servers) -> None:
    _engine(servers)
    assert "m-onnxruntime-fp32-0123456789ab" in enginehouse("engines", "list").out
    assert json.loads(enginehouse("engines", "show", ENGINE, "--manifest").out) == {"key": "k"}
    done = enginehouse("engines", "download", "m-onnxruntime-fp32-0123456789ab", "--out", "here", "--json")
    assert Path(json.loads(done.out)["directory"]).joinpath("model.onnx").read_bytes() == b"engine"


def test_load_infer_unload(enginehouse: Any) -> None:
    settings = ["--instances", "2", "--max-delay-ms", "2", "--option", "threads=1"]
    done = enginehouse("load", "double", "e1", *settings, "--json")
    config = json.loads(done.out)
    assert config["instances"] == 2 and config["batching"]["max_queue_delay_seconds"] == 0.002
    kept = json.loads(enginehouse("load", "double", "e1", "--max-batch", "4", "--json").out)["batching"]
    assert (kept["max_batch_size"], kept["max_queue_delay_seconds"]) == (4, 0.002)
    queue = [
        "--queue-timeout-ms",
        "5",
        "--on-timeout",
        "delay",
        "--no-timeout-override",
        "--prefer",
        "2",
        "--cache-mb",
        "1",
    ]
    levels = ["--priorities", "3", "--priority-queue", "1=8:2:reject", "--priority-queue", "3=100", "--share", "2"]
    batching = json.loads(enginehouse("load", "double", "e1", *queue, *levels, "--json").out)["batching"]
    assert batching == kept | {
        "preferred_batch_sizes": [2],
        "queue_timeout_seconds": 0.005,
        "timeout_action": "delay",
        "allow_timeout_override": False,
        "priority_levels": 3,
        "priority_queues": [
            {"priority_level": 1, "max_queue_size": 8, "queue_timeout_seconds": 0.002, "timeout_action": "reject"},
            {"priority_level": 3, "max_queue_size": 100, "timeout_action": ""},
        ],
        "device_share": 2,
        "response_cache_bytes": 1_000_000,
    }
    cleared = ["--queue-timeout-ms", "0", "--priorities", "0", "--prefer", "0", "--cache-mb", "0", "--share", "0"]
    back = json.loads(enginehouse("load", "double", "e1", *cleared, "--json").out)["batching"]
    assert back == kept | {"timeout_action": "delay", "allow_timeout_override": False}
    assert "LEVEL=SIZE" in enginehouse("load", "double", "e1", "--priority-queue", "1").err
    assert "reject or delay" in enginehouse("load", "double", "e1", "--on-timeout", "drop").err
    assert "double" in enginehouse("serving").out
    np.save("x.npy", np.arange(3.0)[None])
    np.savez("x.npz", x=np.ones((2, 3), np.float32))
    answer = json.loads(enginehouse("infer", "double", "--input", "x=x.npy", "--json").out)
    assert answer["outputs"]["y"]["data"] == [[0.0, 2.0, 4.0]]
    assert enginehouse("infer", "double", "--input", "x.npy").out.startswith("y float32[1, 3] arg max 2 (4)")
    saved = enginehouse("infer", "double", "--input", "x.npz", "--save", "y.npz")
    assert saved.status == 0 and np.load("y.npz")["y"].tolist() == [[2.0] * 3] * 2
    assert enginehouse("infer", "double", "--random", "--batch", "5").out.startswith("y float32[5, 3]")
    assert enginehouse("infer", "double").status == 2
    assert "cannot read" in enginehouse("infer", "double", "--input", "none.npy").err
    assert enginehouse("unload", "double").status == 0
    assert enginehouse("unload", "double").status == 3


def test_inputs_that_cannot_be_read_are_named(enginehouse: Any) -> None:
    Path("empty.npy").touch()
    Path("text.npz").write_text("no array")
    Path("cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez("objects.npz", x=np.array([{}], dtype=object))
    for name in ("empty.npy", "text.npz", "cut.npz", "objects.npz", "none.npy"):
        done = enginehouse("infer", "double", "--input", name)
        assert done.status == 2 and f"cannot read {name}" in done.err and "Traceback" not in done.err


def test_json_stays_json_whatever_a_model_answers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"data": [1.0, float("nan"), -float("inf")]}, compact=True)
    assert json.loads(capsys.readouterr().out, parse_constant=None) == {"data": [1.0, "NaN", "-Infinity"]}


def test_what_is_to_be_served_is_shown_without_an_inference_process(enginehouse: Any) -> None:
    assert enginehouse("load", "double", "e1").status == 0
    shown = enginehouse("--inference", "127.0.0.1:1", "serving", "--json")
    assert shown.status == 0 and "no server answers" in shown.err
    assert [config["id"] for config in json.loads(shown.out)["configurations"]] == ["double"]


def test_thresholds_apply_to_the_data_that_is_given(enginehouse: Any, servers: Servers) -> None:
    _engine(servers)
    np.savez("data.npz", x=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64))
    Path("net.keras").write_bytes(b"model")
    options = ["--precision", "int8", "--calibration-data", "data.npz", "--min-accuracy", "0.9"]
    assert enginehouse("optimize", "net.keras", *options).status == 0
    (request,) = servers.optimizer.requests
    assert request.verification.WhichOneof("data") is None and request.verification.minimum_relative_accuracy == 0.9
    refused = enginehouse("optimize", "net", "--min-accuracy", "0.9")
    assert refused.status == 2 and "needs labelled samples" in refused.err


def test_examples_name_files_that_can_be_optimized(enginehouse: Any) -> None:
    text = enginehouse("optimize", "--help").out
    assert "net.keras" in text and ".onnx" not in text


def test_completion_scripts_are_made(enginehouse: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SHELL": "/bin/bash"}
    code = "from enginehouse.cli.entry import main; main()"
    command = [sys.executable, "-c", code, "--show-completion", "bash"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and "complete" in shown.stdout and "enginehouse" in shown.stdout


def _summary(rows: int) -> RunSummary:
    return RunSummary(Path("r"), "complete", rows, rows, ())


def test_a_benchmark_without_a_row_fails(enginehouse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, status in ((0, 1), (2, 0)):

        async def run_suite(*_: Any, rows: int = rows, **__: Any) -> RunSummary:
            return _summary(rows)

        monkeypatch.setattr("enginehouse.bench.run.run_suite", run_suite)
        done = enginehouse("bench", "run", "quick", "--out", "r", "--json")
        assert done.status == status and json.loads(done.out)["rows"] == rows


def test_a_benchmark_needs_an_optimizer(enginehouse: Any) -> None:
    away = enginehouse("--optimizer", "127.0.0.1:1", "bench", "run", "quick", "--out", "results")
    assert away.status == 4 and "no optimizer serves at 127.0.0.1:1" in away.err and not Path("results").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_benchmarks_course_is_drawn_on_a_terminal_and_told_elsewhere(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    lane = Lane("net", "onnxruntime-cpu-fp32", "onnxruntime", "FP32", "cpu", 1, "host")
    with measuring(console) as progress:
        progress.started(2, 0)
        progress.phase("measure net batch 1")
        progress.window(str(lane), 2, 1234.0)
        drawn = Console(file=io.StringIO(), width=120)
        drawn.print(progress if terminal else "")
        progress.not_run(NotRun(lane, "no GPU", "2025-01-01T00:00:00Z"))
        progress.finished(_summary(1))
    told, now = console.file.getvalue(), drawn.file.getvalue()  # type: ignore[attr-defined]
    assert "not run: net onnxruntime-cpu-fp32" in told and "complete: 1 rows" in told
    if terminal:
        assert "measure net batch 1" in now and "window 2, 1234 inferences/s" in now and "0/2" in now
    else:
        assert "2 rows to measure" in told and "measure net batch 1" in told and "window" not in told


def test_load_takes_the_newest_engine_that_fits(enginehouse: Any, servers: Servers) -> None:
    _engine(servers)
    config = json.loads(enginehouse("load", "m", "--precision", "fp32", "--json").out)
    assert config["versions"][-1]["engine"].endswith("m-onnxruntime-fp32-0123456789ab")
    missing = enginehouse("load", "m", "--precision", "int8")
    assert missing.status == 3 and "no int8 engine" in missing.err and "enginehouse optimize" in missing.err
    assert enginehouse("load", "m", "e1", "--precision", "fp32").status == 2


def test_telemetry(enginehouse: Any) -> None:
    lines = enginehouse("telemetry", "--json", "--count", "2").out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]
    table = enginehouse("telemetry", "--count", "1").out
    assert "120.5" in table and "CPU 12 %" in table
    wanted = ["--format", "csv,nounits", "--query", "index,power.draw"]
    rows = enginehouse("telemetry", *wanted, "--count", "2").out.splitlines()
    assert rows == ["index, power.draw [W]", "0, 120.50", "0, 120.50"]
    assert "utilization.gpu" in enginehouse("telemetry", "--help-query").out
    assert enginehouse("telemetry", "--query", "nothing").status == 2


def test_completion_is_quick_and_silent_without_a_server(
    enginehouse: Any, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    _engine(servers)
    monkeypatch.setattr(context, "current", context.Globals())
    assert completion.engines("m-") == ["m-onnxruntime-fp32-0123456789ab"]
    assert completion.engines("x") == [] and completion.jobs("") == ["job-1"]
    monkeypatch.setenv("ENGINEHOUSE_OPTIMIZER", "127.0.0.1:1")
    assert completion.models("") == []


def test_bench_and_version(enginehouse: Any) -> None:
    assert "quick" in enginehouse("bench", "list").out
    assert enginehouse("bench", "run", "none", "--out", "r").status == 3
    assert "python" in json.loads(enginehouse("version", "--json").out)
    assert enginehouse("report", ".").status == 3


def test_status_without_a_stack(enginehouse: Any) -> None:
    nothing = enginehouse("status")
    assert nothing.status == 1 and "enginehouse up" in nothing.err
    assert enginehouse("down").err.startswith("nothing runs")
    assert enginehouse("up", "--ports", "some").status == 2


def test_without_its_libraries_the_command_says_what_to_install() -> None:
    code = "import sys\nsys.modules['typer'] = None\nfrom enginehouse.cli.entry import main\nmain(['version'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 1
    assert found.stderr == "enginehouse: the command line needs typer: pip install 'enginehouse[cli]'\n"


def test_texts_of_options() -> None:
    assert pairs(["a=b", "c=d=e"], "--option") == {"a": "b", "c": "d=e"}
    with pytest.raises(InvalidArgumentError, match="expected NAME=VALUE"):
        pairs(["a"], "--option")
    assert profile("16") == BatchProfile(1, 16, 16) and profile("1:2:4") == BatchProfile(1, 2, 4)
    with pytest.raises(InvalidArgumentError, match="MIN:OPT:MAX"):
        profile("1:2")
    assert (size(12), size(3 << 20)) == ("12 B", "3.0 MiB")


def test_random_inputs_have_the_model_s_shapes() -> None:
    specs = [TensorSpec("a", "FP16", (-1, 3, -1)), TensorSpec("b", "INT64", (2,)), TensorSpec("c", "BYTES", (-1,))]
    arrays = random_inputs(ModelSignature("m", (), "", tuple(specs), ()), 4, np.random.default_rng(0))
    assert {name: (str(a.dtype), a.shape) for name, a in arrays.items()} == {
        "a": ("float16", (4, 3, 1)),
        "b": ("int64", (2,)),
        "c": ("object", (4,)),
    }
    assert summary(np.arange(20)).endswith("7 ...")
