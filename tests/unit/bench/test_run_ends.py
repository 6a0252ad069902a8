"""How a run ends when it cannot go on: a clear message, and what was finished is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_fakes import FakeEngines, FakeServing, FakeWorkers, machine

from enginehouse.bench.run import execute
from enginehouse.bench.seams import Seams
from enginehouse.bench.store import read_lines
from enginehouse.bench.suite_file import parse_suite
from enginehouse.errors import NotFoundError, ResourceExhaustedError, UnavailableError

SUITE = parse_suite(
    "name: t\nmodels: [resnet_v1_50, vgg16]\nmodes: [onnxruntime-cpu-fp32]\nbatches: [1]\n"
    "measure: {warmup_seconds: 0, window_seconds: 0.01, max_windows: 10}\n",
    "t.yaml",
)


async def test_an_unknown_model_ends_the_run_before_anything_is_measured(tmp_path: Path) -> None:
    engines = FakeEngines({"vgg16": NotFoundError("there is no such model")})
    with pytest.raises(NotFoundError, match=r"suite 't', models\[1\] 'vgg16' \(the zoo's 'vgg16'\): there is no"):
        await execute(SUITE, tmp_path / "r", Seams(engines, FakeWorkers()), machine=machine())
    assert not (tmp_path / "r").exists()


async def test_an_optimizer_that_leaves_ends_the_run_and_keeps_the_rows(tmp_path: Path) -> None:
    class Leaving(FakeEngines):
        async def engine(self, model, mode, suite):  # type: ignore[no-untyped-def]
            if model.name == "vgg16":
                self.gone = True
                raise UnavailableError("connection refused")
            return await super().engine(model, mode, suite)

    with pytest.raises(UnavailableError, match=r"the optimizer left .*vgg16.*--resume"):
        await execute(SUITE, tmp_path / "r", Seams(Leaving(), FakeWorkers()), machine=machine())
    assert len(read_lines(tmp_path / "r/rows.jsonl")) == 1
    again = await execute(SUITE, tmp_path / "r", Seams(FakeEngines(), FakeWorkers()), resume=True, machine=machine())
    assert (again.rows, again.new_rows, again.status) == (2, 1, "complete")


async def test_an_error_of_one_mode_is_listed_while_the_optimizer_answers(tmp_path: Path) -> None:
    engines = FakeEngines({"onnxruntime-cpu-fp32": UnavailableError("its worker died")})
    summary = await execute(SUITE, tmp_path / "r", Seams(engines, FakeWorkers()), machine=machine())
    assert {entry.reason for entry in summary.not_run} == {"its worker died"} and summary.status == "complete"


async def test_a_full_disk_ends_the_run_with_a_clear_message(tmp_path: Path) -> None:
    workers = FakeWorkers()
    directory = tmp_path / "r"
    directory.mkdir()
    (directory / "windows.jsonl").symlink_to("/dev/full")  # the kernel's own "no space left on device"
    with pytest.raises(ResourceExhaustedError, match=r"no space left on the disk of .*windows.jsonl.*--resume"):
        await execute(SUITE, directory, Seams(FakeEngines(), workers), machine=machine())
    assert all(worker.closed for worker in workers.started)
    (directory / "windows.jsonl").unlink()
    again = await execute(SUITE, directory, Seams(FakeEngines(), FakeWorkers()), resume=True, machine=machine())
    assert (again.rows, again.status) == (2, "complete")


async def test_an_inference_service_that_is_not_there_is_listed(tmp_path: Path) -> None:
    serving = FakeServing()
    serving.gone = True
    text = "name: t\nmodels: [resnet_v1_50]\nmodes: [onnxruntime-cpu-fp32]\nbatches: [1]\nscopes: [host, served]\n"
    suite = parse_suite(text + "measure: {warmup_seconds: 0, window_seconds: 0.01}\n", "t.yaml")
    summary = await execute(suite, tmp_path / "r", Seams(FakeEngines(), FakeWorkers(), serving), machine=machine())
    assert [(entry.lane.scope, entry.code) for entry in summary.not_run] == [("served", "UNAVAILABLE")]
    assert summary.rows == 1
