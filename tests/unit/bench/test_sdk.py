from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FakeEngines, FakeWorkers, machine

from enginehouse.bench.environment import Environment, bench_software
from enginehouse.bench.inputs import random_inputs
from enginehouse.bench.modes import known_modes
from enginehouse.bench.run import execute
from enginehouse.bench.sdk import SdkEngines, SdkTelemetry
from enginehouse.bench.seams import Seams, Tensor
from enginehouse.bench.suite import ModelSpec
from enginehouse.bench.suite_file import parse_suite
from enginehouse.bench.telemetry import telemetry_csv, timestamp
from enginehouse.client.values import Device, Engine, JobView, Sample, StageView, Verification
from enginehouse.client.values.telemetry import GpuSample, HostSample
from enginehouse.errors import FailedPreconditionError

TEXT = "name: s\nmodels: [resnet_v1_50]\nmodes: [onnxruntime-cpu-int8, tensorrt-int8]\nbatches: [1, 8]\n"
TEXT += "measure: {warmup_seconds: 0}\n"


class FakeClient:
    """The parts of the SDK's client that a benchmark calls."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.models = self.engines = self.telemetry = self

    async def ensure_zoo(self, name: str, *, seed: int = 0) -> Any:
        return type("Model", (), {"name": f"projects/default/models/{name}"})

    async def optimize(self, model: str, targets: Any, **rest: Any) -> Any:
        self.asked = {"model": model, "targets": targets, **rest}
        return self

    async def metadata(self) -> JobView:
        start, end = (datetime(2026, 1, 2, 3, minute, tzinfo=timezone.utc) for minute in (4, 5))
        ran = StageView("calibrate", "succeeded", start_time=start, end_time=end)
        return JobView("projects/default/operations/o", "succeeded", stages=(ran, StageView("build", "reused")))

    async def result(self) -> list[Engine]:
        verification = Verification("synthetic", 4, sqnr_db=30.0)
        device, name = Device("cpu", "Test CPU"), "projects/default/engines/e-1"
        return [Engine(name, "sha256:k", "m", "d", "int8", "onnxruntime", "1", device, (), (), (), 1,
                       max_batch_size=8, verification=verification)]  # fmt: skip

    async def download(self, engine: Engine, directory: Path) -> Path:
        return directory

    async def stream(self, *, period: float) -> AsyncIterator[Sample]:
        gpu = GpuSample("u", 0, "ok", power_draw_watts=50.0)
        host = HostSample(cpu_utilization_percent=0.0)
        yield Sample(datetime(2026, 1, 2, tzinfo=timezone.utc), "n", 1, (gpu,), host)


async def test_engines_are_asked_for_and_described(tmp_path: Path) -> None:
    client, suite = FakeClient(), parse_suite(TEXT, "s.yaml")
    source = SdkEngines(client)  # type: ignore[arg-type]
    engine = await source.engine(ModelSpec("resnet_v1_50", zoo="resnet_v1_50"), suite.modes[0], suite)
    (target,) = client.asked["targets"]
    assert (target.backend, target.precision, target.profile.max) == ("onnxruntime", "int8", 8)
    assert client.asked["calibration"].synthetic.samples == 32
    (stage,) = source.stages(engine)
    assert stage.name == "calibrate" and stage.ended - stage.started == 60
    assert engine.accuracy is not None and engine.accuracy.sqnr_db == 30.0 and engine.accuracy.top1 is None
    assert await source.download(engine, tmp_path) == tmp_path / "e-1"
    await source.engine(ModelSpec("m", zoo="m"), known_modes()["onnxruntime-cpu-fp32"], suite)
    assert client.asked["calibration"] is None


async def test_engines_are_built_on_the_gpu_that_measures_them(monkeypatch: pytest.MonkeyPatch) -> None:
    client, suite = FakeClient(), parse_suite(TEXT, "s.yaml")
    source = SdkEngines(client)  # type: ignore[arg-type]
    monkeypatch.setenv("ENGINEHOUSE_GPU_PRODUCT", "NVIDIA-H200")
    gpu = dataclasses.replace(suite.modes[0], device="gpu")
    for mode, product in ((gpu, "NVIDIA-H200"), (suite.modes[0], "")):
        await source.engine(ModelSpec("m", zoo="m"), mode, suite)
        assert client.asked["targets"][0].gpu_product == product


async def test_an_interrupted_run_leaves_no_job_behind(tmp_path: Path) -> None:
    class Waiting(FakeClient):
        cancelled = False

        async def result(self) -> list[Engine]:
            await asyncio.sleep(60)
            return []

        async def cancel(self) -> None:
            self.cancelled = True

    client, suite = Waiting(), parse_suite(TEXT, "s.yaml")
    source = SdkEngines(client)  # type: ignore[arg-type]
    making = asyncio.ensure_future(source.engine(ModelSpec("m", zoo="m"), suite.modes[0], suite))
    await asyncio.sleep(0.01)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert client.cancelled


async def test_samples_keep_zero_and_leave_out_what_is_absent() -> None:
    (sample,) = [s async for s in SdkTelemetry(FakeClient()).samples(0.1)]  # type: ignore[arg-type]
    assert sample["host"] == {"cpu_utilization_percent": 0.0}
    assert sample["gpus"] == [{"uuid": "u", "index": 0, "state": "ok", "power_draw_watts": 50.0}]
    assert timestamp(sample["time"]) == datetime(2026, 1, 2, tzinfo=timezone.utc).timestamp()
    line = telemetry_csv([sample]).splitlines()[1]
    assert line.startswith("2026-01-02T00:00:00+00:00,n,0,,,,,,,50.0,,")


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("2026-01-02T00:00:00Z", 0.0), ("2026-01-02T00:00:00.5Z", 0.5), ("2026-01-02T00:00:00.123456789+00:00", 0.123456)],
)
def test_timestamps(text: str, fraction: float) -> None:
    assert timestamp(text) % 60 == pytest.approx(fraction, abs=1e-5)


async def test_broken_telemetry_never_fails_a_run(tmp_path: Path) -> None:
    class Broken:
        async def samples(self, period_seconds: float) -> AsyncIterator[Any]:
            yield {"no time": 1}

    summary = await execute(
        parse_suite(TEXT, "s.yaml"),
        tmp_path / "r",
        Seams(FakeEngines(), FakeWorkers(), None, Broken()),
        machine=machine(),
    )
    assert summary.status == "complete" and "telemetry" in (tmp_path / "r/run.json").read_text()


def test_equal_environments_have_equal_digests() -> None:
    first, second = (Environment(machine(), {"a": "1", **order}) for order in ({"b": "2"}, {"b": "2"}))
    assert first.digest == second.digest != Environment(machine(1), {"a": "1", "b": "2"}).digest
    assert first.digest.startswith("sha256:") and "python" in " ".join(bench_software())


def test_random_inputs() -> None:
    tensors = (Tensor("x", "FP32", (-1, 3)), Tensor("i", "INT64", (-1,)), Tensor("b", "BOOL", (-1, 2)))
    first, second = random_inputs(tensors, 4, 7), random_inputs(tensors, 4, 7)
    assert {name: array.shape for name, array in first.items()} == {"x": (4, 3), "i": (4,), "b": (4, 2)}
    assert all((first[name] == second[name]).all() for name in first)
    for bad in (Tensor("x", "FP32", (-1, -1)), Tensor("x", "BYTES", (-1, 1))):
        with pytest.raises(FailedPreconditionError):
            random_inputs((bad,), 1, 0)
