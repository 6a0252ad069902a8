"""Several GPUs, the scope engine, flags of a point, and the order of lanes; on stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from bench_fakes import FakeEngines, FakeTelemetry, FakeWorkers, machine

from enginehouse.bench.interleave import interleave, warm_up
from enginehouse.bench.rows import Row
from enginehouse.bench.run import execute
from enginehouse.bench.seams import JobStage, Seams
from enginehouse.bench.statistics import Window
from enginehouse.bench.store import read_lines
from enginehouse.bench.suite import MeasureSpec
from enginehouse.bench.suite_file import parse_suite

SUITE = (
    "name: t\nmodels: [resnet_v1_50]\nmodes: [tensorrt-int8, tf-trt-int8, onnxruntime-cpu-fp32]\nbatches: [2]\n"
    "scopes: [engine, host]\ngpus: all\nmeasure: {warmup_seconds: 0, window_seconds: 0.01}\n"
)


def rows(directory: Path) -> dict[tuple[str, str, str], Row]:
    found = [Row.from_json(value) for value in read_lines(directory / "rows.jsonl")]
    return {(row.lane.mode, row.lane.device, row.lane.scope): row for row in found}


async def test_each_gpu_and_all_at_once(tmp_path: Path) -> None:
    workers = FakeWorkers()
    for gpu in range(2):
        workers.rates[f"tensorrt-int8@gpu:{gpu}"] = [100.0 + gpu]
    summary = await execute(parse_suite(SUITE, "t"), tmp_path / "r", Seams(FakeEngines(), workers), machine=machine(2))
    found = rows(tmp_path / "r")
    assert {device for mode, device, scope in found if (mode, scope) == ("tensorrt-int8", "engine")} == {
        "gpu:0", "gpu:1", "gpu:all",
    }  # fmt: skip
    together = found["tensorrt-int8", "gpu:all", "host"]
    assert together.gpus == 2
    # Both gave 10 images: 10 in 100 ms on one, 10 in 99 ms on the other; the slower one sets the time.
    assert together.inferences_per_second == pytest.approx(200, rel=1e-6)
    assert ("onnxruntime-cpu-fp32", "cpu", "host") in found and ("onnxruntime-cpu-fp32", "cpu", "engine") not in found
    reasons = {(entry.lane.mode, entry.lane.scope): entry.reason for entry in summary.not_run}
    assert reasons == {("tf-trt-int8", "engine"): "this runtime copies with every batch"}
    assert len(workers.started) == 5, "one process for each environment and device"


async def test_modes_that_switch_the_whole_process_have_one_each(tmp_path: Path) -> None:
    workers = FakeWorkers()
    modes = "[tensorflow-gpu-fp32, tensorflow-gpu-tf32, tf-trt-int8]"
    text = SUITE.replace("[tensorrt-int8, tf-trt-int8, onnxruntime-cpu-fp32]", modes).replace(
        "[engine, host]", "[host]"
    )
    await execute(parse_suite(text, "t"), tmp_path / "r", Seams(FakeEngines(), workers), machine=machine(1))
    assert len(rows(tmp_path / "r")) == len(workers.started) == 3
    assert [sorted(worker.loaded) for worker in workers.started] == [
        ["tensorflow-gpu-fp32@gpu:0"], ["tensorflow-gpu-tf32@gpu:0"], ["tf-trt-int8@gpu:0"],
    ]  # fmt: skip


async def test_a_point_beside_another_process_is_flagged(tmp_path: Path) -> None:
    workers, telemetry, engines = FakeWorkers(), FakeTelemetry(gpu=True), FakeEngines()
    telemetry.processes = [100, 4242]  # the worker's, and another
    engines.ran = [JobStage("calibrate", 1000.0, 1060.0), JobStage("freeze", 900.0, 1000.0)]
    text = SUITE.replace(", tf-trt-int8, onnxruntime-cpu-fp32", "").replace("[engine, host]", "[host]")
    start = workers.start

    async def slow_start(environment: str, device: str):  # type: ignore[no-untyped-def]
        import asyncio

        worker = await start(environment, device)
        measure = worker.measure

        async def slow(*arguments, **options):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.02)
            return await measure(*arguments, **options)

        worker.measure = slow
        return worker

    workers.start = slow_start  # type: ignore[method-assign]
    await execute(parse_suite(text, "t"), tmp_path / "r", Seams(engines, workers, None, telemetry), machine=machine(1))
    row = rows(tmp_path / "r")["tensorrt-int8", "gpu:0", "host"]
    assert row.other_processes == 1 and row.throttled is False and row.throttle_reasons == ()
    phases = {phase["kind"]: phase for phase in read_lines(tmp_path / "r/phases.jsonl")}
    assert phases["calibrate"]["name"] == "calibrate resnet_v1_50 tensorrt-int8"
    assert phases["calibrate"]["start"].startswith("1970-01-01T00:16:40")


def window(rate: float) -> Window:
    return Window((10**7,), round(1e9 / rate), 1)


async def order(seed: str, how: str) -> list[str]:
    ran: list[str] = []

    async def measure(lane: str, index: int) -> Window:
        ran.append(lane)
        return window(100)

    await interleave(["a", "b", "c"], measure, MeasureSpec(order=how), lambda *_: None, seed=seed)
    return ran


async def test_the_order_is_random_in_each_turn_and_the_same_for_a_seed() -> None:
    ran = await order("1", "random")
    turns = [tuple(ran[at : at + 3]) for at in range(0, len(ran), 3)]
    assert len(turns) == 10 and all(sorted(turn) == ["a", "b", "c"] for turn in turns) and len(set(turns)) > 2
    assert ran == await order("1", "random") != await order("2", "random")
    assert await order("1", "fixed") == ["a", "b", "c"] * 10


@pytest.mark.parametrize(("rates", "windows"), [([1, 50, 100, 101, 100], 5), ([1, 2] * 20, 12), ([100] * 9, 3)])
async def test_warm_up_ends_when_throughput_is_stable_or_its_time_is_up(rates: Sequence[float], windows: int) -> None:
    given, now = list(rates), [0.0]

    async def measure() -> Window:
        now[0] += 1
        return window(given.pop(0))

    spec = MeasureSpec(warmup_seconds=2, warmup_max_seconds=12)
    assert await warm_up(measure, spec, clock=lambda: now[0]) == windows
    assert await warm_up(measure, MeasureSpec(warmup_seconds=0)) == 0
