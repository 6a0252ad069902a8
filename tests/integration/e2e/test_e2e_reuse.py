"""What was done once is not done again: equal requests, equal stages of other requests, requests at the same time."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import enginehouse

from enginehouse import BatchProfile, Calibration, Client, Job, Synthetic, Target
from enginehouse.client.values import Model

PROFILE = BatchProfile(1, 4, 8)
BOTH = [Target("onnxruntime", "fp32", PROFILE), Target("onnxruntime", "int8", PROFILE)]
CALIBRATION = Calibration("max", synthetic=Synthetic(samples=8))


def runs(home: Path) -> Counter[str]:
    """How often each stage was started, as the optimizer's log has it."""
    text = (home / "logs" / "optimizer.log").read_text()
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return Counter(entry["stage"] for entry in found if entry.get("event") == "stage starts")


def states(job: Job) -> dict[str, str]:
    return {stage.name: stage.state for stage in job.metadata().stages}


@pytest.fixture(scope="module")
def model(client: Client, onnx_models: Path) -> Model:
    """An archive of a graph and its weights."""
    return client.models.upload(onnx_models / "external" / "colours.onnx")


@pytest.fixture(scope="module")
def jobs(client: Client, model: Model) -> list[Job]:
    """Two equal requests at once."""
    return [client.optimize(model, BOTH, calibration=CALIBRATION) for _ in range(2)]


def test_two_equal_requests_at_once_share_one_run(client: Client, home: Path, jobs: list[Job]) -> None:
    first, second = jobs[0].result(120), jobs[1].result(120)
    assert first == second and [engine.precision for engine in first] == ["fp32", "int8"]
    started = runs(home)
    assert started["calibrate"] == 1 and set(started.values()) == {1}, started
    assert set(started) == set(states(jobs[0]))


def test_the_same_again_costs_nothing(client: Client, home: Path, jobs: list[Job], model: Model) -> None:
    engines, before = jobs[0].result(120), runs(home)
    again = client.optimize(model, BOTH, calibration=CALIBRATION)
    assert again.result(120) == engines
    assert runs(home) == before and set(states(again).values()) == {"reused"}
    # What they took is told of the runs that made them.
    took = {stage.name: stage.took_seconds for stage in jobs[0].metadata().stages}
    assert {stage.name: stage.took_seconds for stage in again.metadata().stages} == took and all(took.values())
    shown = enginehouse(home, "jobs", "show", again.id).stdout
    count = len(took)
    assert re.search(rf"{count} of {count} stages reused", shown), shown


def test_another_method_reuses_what_does_not_depend_on_it(
    client: Client, home: Path, jobs: list[Job], model: Model
) -> None:
    jobs[0].result(120)
    other = client.optimize(model, BOTH, calibration=Calibration("entropy", synthetic=Synthetic(samples=8)))
    other.result(120)
    found = states(other)
    fresh = {"calibrate", "quantize onnxruntime", "build onnxruntime int8", "verify onnxruntime int8"}
    assert {name for name, state in found.items() if state == "succeeded"} == fresh, found
    assert {state for name, state in found.items() if name not in fresh} == {"reused"}


def test_engines_of_an_archive_are_those_of_one_file(client: Client, onnx_models: Path, jobs: list[Job]) -> None:
    whole = client.models.upload(onnx_models / "colours.onnx", "whole")
    (engine,) = client.optimize(whole, BOTH[:1]).result(120)
    client.load("archive", jobs[0].result(120)[0])
    client.load("whole", engine)
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    found = [client.infer(name, images)["scores"] for name in ("archive", "whole")]
    np.testing.assert_array_equal(found[0], found[1])
    client.unload("archive")
    client.unload("whole")
