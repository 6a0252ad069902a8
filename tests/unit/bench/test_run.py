from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from bench_fakes import FakeEngines, FakeServing, FakeTelemetry, FakeWorkers, Told, machine

from enginehouse.bench.rows import Row
from enginehouse.bench.run import execute, served_name
from enginehouse.bench.seams import Seams
from enginehouse.bench.store import read_lines
from enginehouse.bench.suite import Suite
from enginehouse.bench.suite_file import parse_suite
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError, UnavailableError

SUITE = """
name: t
models: [resnet_v1_50]
modes: [tensorflow-cpu-fp32, onnxruntime-cpu-fp32, onnxruntime-cpu-int8, tf-trt-int8]
batches: [1, 2]
measure: {warmup_seconds: 0, window_seconds: 0.01, max_windows: 12, max_seconds: 5, order: fixed}
"""


def suite(text: str = SUITE) -> Suite:
    return parse_suite(text, "t.yaml")


def rows(directory: Path) -> list[Row]:
    return [Row.from_json(value) for value in read_lines(directory / "rows.jsonl")]


async def test_modes_are_measured_in_turn_and_missing_ones_stay_with_their_reason(tmp_path: Path) -> None:
    workers, told = FakeWorkers(), Told()
    seams = Seams(FakeEngines(), workers, None, FakeTelemetry(), told)
    summary = await execute(suite(), tmp_path / "r", seams, command="bench", machine=machine())
    found = rows(tmp_path / "r")
    assert (summary.status, summary.rows, told.planned, len(told.rows)) == ("complete", 6, 8, 6)
    assert [key.split("@")[0] for key, _ in workers.order[:30]] == [
        "tensorflow-cpu-fp32", "onnxruntime-cpu-fp32", "onnxruntime-cpu-int8",
    ] * 10  # fmt: skip
    assert {(row.windows, row.confidence) for row in found} == {(10, 0.95)}
    assert len({row.round for row in found}) == 2 and all(row.stable for row in found)
    assert [row.lane.batch for row in found] == [1, 1, 1, 2, 2, 2]
    assert len(workers.started) == 2 and all(worker.closed for worker in workers.started)
    assert {entry.reason for entry in summary.not_run} == {"no NVIDIA GPU: NVML library not found"}
    assert len(summary.not_run) == 2
    environments = json.loads((tmp_path / "r/environments.json").read_text())
    assert {row.environment for row in found} == set(environments)
    assert found[0].cpu_ms == pytest.approx(1e6 / 1e6 / 5) and found[0].power_w is None
    phases = read_lines(tmp_path / "r/phases.jsonl")
    assert {phase["kind"] for phase in phases} >= {"optimize", "load", "measure"}
    assert read_lines(tmp_path / "r/telemetry.jsonl")
    assert (tmp_path / "r/telemetry.csv").read_text().startswith("timestamp,node,index,pstate")
    assert "power_w" not in (tmp_path / "r/rows.jsonl").read_text()


async def test_a_row_that_does_not_settle_is_not_stable(tmp_path: Path) -> None:
    workers = FakeWorkers()
    workers.rates["onnxruntime-cpu-fp32@cpu"] = [100.0, 200.0] * 50
    workers.rates["onnxruntime-cpu-int8@cpu"] = [10.0, *[100.0] * 11]
    text = SUITE.replace("tensorflow-cpu-fp32, ", "").replace("[1, 2]", "[1]")
    await execute(suite(text), tmp_path / "r", Seams(FakeEngines(), workers), machine=machine())
    unstable, settled = rows(tmp_path / "r")
    assert (unstable.stable, unstable.windows) == (False, 12) and unstable.interval[1] > 1.2 * unstable.interval[0]
    assert (settled.stable, settled.windows) == (True, 11) and settled.inferences_per_second == pytest.approx(100)


async def test_an_interruption_keeps_rows_and_a_resume_measures_the_others(tmp_path: Path) -> None:
    workers, told = FakeWorkers(), Told()
    task = asyncio.ensure_future(
        execute(suite(), tmp_path / "r", Seams(FakeEngines(), workers, progress=told), machine=machine())
    )
    workers.cancel_at, workers.cancel = 33, lambda: task.cancel()  # in the second batch size
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = rows(tmp_path / "r")
    assert [row.lane.batch for row in kept] == [1, 1, 1]
    assert told.summary is not None and told.summary.status == "interrupted"
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "interrupted"
    assert all(worker.closed for worker in workers.started)
    with (tmp_path / "r/rows.jsonl").open("a") as file:
        file.write('{"torn')

    again = FakeWorkers()
    summary = await execute(suite(), tmp_path / "r", Seams(FakeEngines(), again), resume=True, machine=machine())
    assert (summary.rows, summary.new_rows, summary.status) == (6, 3, "complete")
    assert {batch for _, batch in again.order} == {2}
    assert rows(tmp_path / "r")[:3] == kept
    assert len(summary.not_run) == 2


async def test_directories_are_not_mixed_up(tmp_path: Path) -> None:
    seams = Seams(FakeEngines(), FakeWorkers())
    await execute(suite(), tmp_path / "r", seams, machine=machine())
    with pytest.raises(FailedPreconditionError, match="holds results already"):
        await execute(suite(), tmp_path / "r", seams, machine=machine())
    with pytest.raises(FailedPreconditionError, match="another suite"):
        await execute(suite(SUITE + "seed: 3\n"), tmp_path / "r", seams, resume=True, machine=machine())
    with pytest.raises(FailedPreconditionError, match="no results to resume"):
        await execute(suite(), tmp_path / "other", seams, resume=True, machine=machine())


async def test_reasons_of_engines_environments_and_batches(tmp_path: Path) -> None:
    workers = FakeWorkers(missing=["tensorflow"])
    workers.failures["onnxruntime-cpu-fp32@cpu", 2] = ResourceExhaustedError("out of memory")
    engines = FakeEngines({"onnxruntime-cpu-int8": InvalidArgumentError("no calibration data")})
    summary = await execute(suite(), tmp_path / "r", Seams(engines, workers), machine=machine(gpus=1))
    reasons = {(entry.lane.mode, entry.lane.batch): (entry.code, entry.reason) for entry in summary.not_run}
    assert reasons["tensorflow-cpu-fp32", 1][1] == "the tensorflow worker environment is not installed"
    assert reasons["onnxruntime-cpu-int8", 2] == ("INVALID_ARGUMENT", "no calibration data")
    assert reasons["onnxruntime-cpu-fp32", 2] == ("RESOURCE_EXHAUSTED", "out of memory")
    assert {row.lane.mode for row in rows(tmp_path / "r")} == {"onnxruntime-cpu-fp32", "tf-trt-int8"}


async def test_a_worker_that_dies_is_replaced_for_the_modes_that_shared_it(tmp_path: Path) -> None:
    workers = FakeWorkers()
    workers.failures["onnxruntime-cpu-fp32@cpu", 1] = UnavailableError("killed by SIGSEGV")
    text = SUITE.replace("tensorflow-cpu-fp32, ", "").replace(", tf-trt-int8", "")
    summary = await execute(suite(text), tmp_path / "r", Seams(FakeEngines(), workers), machine=machine())
    assert {(row.lane.mode, row.lane.batch) for row in rows(tmp_path / "r")} == {
        ("onnxruntime-cpu-int8", 1), ("onnxruntime-cpu-int8", 2),
    }  # fmt: skip
    assert {entry.reason for entry in summary.not_run} == {"killed by SIGSEGV"}
    assert len(workers.started) == 2


async def test_served_keeps_the_asked_requests_in_flight(tmp_path: Path) -> None:
    serving = FakeServing()
    text = SUITE.replace(", tf-trt-int8", "").replace("[1, 2]", "[2]") + "scopes: [served]\nconcurrency: [3]\n"
    await execute(suite(text), tmp_path / "r", Seams(FakeEngines(), None, serving), machine=machine())
    found = rows(tmp_path / "r")
    assert len(found) == 3 and serving.most == 3 and not serving.published
    assert all(row.lane.scope == "served" and row.lane.concurrency == 3 and row.cpu_ms is None for row in found)
    assert found[0].latency_ms.p50 >= 0.5


async def test_gpu_rows_carry_what_the_gpu_reported(tmp_path: Path) -> None:
    text = SUITE.replace("window_seconds: 0.01", "window_seconds: 0.02").replace("[1, 2]", "[1]")

    class Slow(FakeWorkers):
        pass

    workers = Slow()
    original = FakeTelemetry(gpu=True)
    seams = Seams(FakeEngines(), workers, None, original)

    async def pause(key: str, batch: int) -> None:
        await asyncio.sleep(0.01)

    start = workers.start

    async def slow_start(environment: str, device: str):  # type: ignore[no-untyped-def]
        worker = await start(environment, device)
        measure = worker.measure

        async def slow(key: str, *, batch: int, seconds: float, seed: int, scope: str):  # type: ignore[no-untyped-def]
            await pause(key, batch)
            return await measure(key, batch=batch, seconds=seconds, seed=seed, scope=scope)

        worker.measure = slow
        return worker

    workers.start = slow_start
    await execute(suite(text), tmp_path / "r", seams, machine=machine(gpus=1))
    gpu = next(row for row in rows(tmp_path / "r") if row.lane.device == "gpu:0")
    assert gpu.power_w == pytest.approx(50) and gpu.throttled is False and gpu.temperature_c is None


def test_served_names_are_valid_ids() -> None:
    from enginehouse.names import check_id

    assert check_id(served_name("My Model", "onnxruntime-cpu-int8" * 5), "x").startswith("bench-my-model-onnx")
