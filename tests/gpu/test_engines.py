"""Engines of the backend under test, built by the worker's stages and run by a worker, against ONNX Runtime FP32."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import SAMPLES, Workshop, array_of, run_one, variables, worker_of
from conftest import PROFILE, Notes, Small
from device_memory import taken
from machine import LEAST_SQNR_DB, OWN_ANSWER, ROOT, Machine, say, sqnr_db, worst_row

from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError

pytestmark = pytest.mark.timeout(550)

GRAPHS = ROOT / "benchmarks" / "graphs"
SIX = ("resnet_v1_50", "resnet_v2_50", "inception_v3", "inception_v4", "vgg16", "vgg19")
ALL = os.environ.get("ENGINEHOUSE_GPU_MODELS", "")
# ONNX Runtime's own INT8 of these networks with random weights has 8.6 (Inception v4) to 14.7 dB on images
# (results/epyc-2-cores/six-models): deep random networks amplify rounding. Other images may do a little worse, and
# FP16, with 3 bits more, has some 18 dB more.
LEAST_ZOO_DB = {**LEAST_SQNR_DB, "TF32": 25.0, "FP16": 25.0, "INT8": 5.0}


def precision_cases() -> list[Any]:
    return [pytest.param(name, id=name.lower()) for name in LEAST_SQNR_DB]


async def outputs(machine: Machine, engine: Path, name: str, images: Any, batch: int) -> Any:
    """The engine's outputs for all images, in batches of one size."""
    async with worker_of(machine) as worker:
        await worker.load("m", engine, warmup=[])
        parts = [await run_one(worker, "m", name, images[at : at + batch]) for at in range(0, len(images), batch)]
    return np.concatenate(parts)


@pytest.mark.parametrize("precision", precision_cases())
async def test_outputs_are_close_to_fp32(
    machine: Machine, workshop: Workshop, small: Small, notes: Notes, precision: str
) -> None:
    if precision not in machine.precisions:
        pytest.skip(f"{machine.backend} has no {precision}")
    source = small.int8 if precision == "INT8" else small.model
    engine = await workshop.built(f"small-{precision}", source, precision, PROFILE)
    found = await outputs(machine, engine, small.name, small.images, 16)
    measured = sqnr_db(found, small.expected)
    notes.add(f"small {precision} sqnr_db", round(measured, 1))
    assert measured > LEAST_SQNR_DB[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", precision_cases())
@pytest.mark.parametrize("network", SIX)
async def test_networks_are_close_to_fp32(
    machine: Machine, workshop: Workshop, notes: Notes, network: str, precision: str
) -> None:
    if network != SIX[0] and ALL != "all" and network not in ALL.split(","):
        pytest.skip("ENGINEHOUSE_GPU_MODELS=all, or names with commas between, tests more than resnet_v1_50")
    if precision not in machine.precisions:
        pytest.skip(f"{machine.backend} has no {precision}")
    graph = GRAPHS / f"{network}.onnx"
    if not graph.exists():
        pytest.skip(f"{graph.relative_to(ROOT)} is not there")
    model = await workshop.imported(network, "zoo", graph)
    images = await workshop.images(network, model, samples=16)
    expected = await workshop.reference(network, model, images)
    source = await workshop.quantized(network, model, images) if precision == "INT8" else model
    # A short search for tactics: it changes the speed, not the numbers.
    options = {"optimization_level": "1"} if machine.gpu else {}
    engine = await workshop.built(f"{network}-{precision}", source, precision, (1, 8, 8), **options)
    name, array = array_of(images)
    found = await outputs(machine, engine, name, array, 8)
    measured = sqnr_db(found, expected)
    notes.add(f"{network} {precision} sqnr_db", round(measured, 1))
    assert measured > LEAST_ZOO_DB[precision]


@pytest.mark.parametrize(
    ("precision", "options"),
    [("BF16", {}), ("FP8", {}), ("FP16", {"strip_weights": "true"})],
    ids=["bf16", "fp8", "stripped"],
)
async def test_what_the_version_lacks_is_refused(
    gpu: Machine, workshop: Workshop, small: Small, tmp_path: Path, precision: str, options: dict[str, str]
) -> None:
    version = (await _backends(gpu))["tensorrt"]
    if int(version.partition(".")[0]) > 8:
        pytest.skip(f"TensorRT {version} may have it")
    with pytest.raises(FailedPreconditionError) as refused:
        await Workshop(gpu, tmp_path).built("refused", small.model, precision, PROFILE, **options)
    assert version in refused.value.message and "later have it" in refused.value.message


async def _backends(machine: Machine) -> dict[str, str]:
    async with worker_of(machine) as worker:
        return dict(worker.backends)


def test_an_engine_says_where_it_was_built(gpu: Machine, engine: Path) -> None:
    manifest = json.loads((engine / "engine.json").read_text())
    device = manifest["device"]
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    assert [device["product"], device["driver_version"], device["compute_capability"]] == said
    assert manifest["backend_version"] == asyncio.run(_backends(gpu))["tensorrt"] and manifest["trial"] == "run"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": {"kind": "gpu", "product": "NVIDIA T4", "compute_capability": "7.5"}}, "NVIDIA T4"),
        ({"backend_version": "8.5.3"}, "8.5.3"),
    ],
    ids=["another GPU", "another version"],
)
async def test_engines_of_others_are_refused(
    gpu: Machine, engine: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    shutil.copytree(engine, tmp_path / "other")
    manifest = json.loads((engine / "engine.json").read_text())
    here = manifest["device"]["product"] if "device" in change else manifest["backend_version"]
    (tmp_path / "other" / "engine.json").write_text(json.dumps({**manifest, **change}))
    async with worker_of(gpu) as worker:
        with pytest.raises(FailedPreconditionError) as refused:
            await worker.load("m", tmp_path / "other")
        assert named in refused.value.message and here in refused.value.message
        assert "device" not in change or "enginehouse optimize" in refused.value.message
        await worker.load("m", engine)  # the worker is none the worse


@pytest.mark.parametrize("precision", ["half", "int8"])
async def test_mixed_batches_over_several_instances_answer_each_row(
    machine: Machine, small: Small, engine: Path, int8_engine: Path, notes: Notes, precision: str
) -> None:
    chosen, kind = (engine, machine.half) if precision == "half" else (int8_engine, "INT8")
    random = np.random.default_rng(3)
    async with worker_of(machine) as worker:
        # Fewer graphs than sizes: some are evicted on the way.
        options = {"cuda_graphs": "4"} if machine.gpu else {}
        await worker.load("m", chosen, instances=3, warmup=[], options=options)
        alone = np.concatenate([await run_one(worker, "m", small.name, image[None]) for image in small.images])
        worst = 0.0

        async def one() -> None:
            nonlocal worst
            picked = random.integers(0, SAMPLES, size=int(random.integers(1, PROFILE[2] + 1)))
            found = await run_one(worker, "m", small.name, small.images[picked])
            assert found.shape == alone[picked].shape
            worst = max(worst, worst_row(found, alone, picked))

        for _ in range(40):
            await asyncio.gather(*(one() for _ in range(8)))
    notes.add(f"mixed batches {kind} worst row", round(worst, 5))
    assert worst < OWN_ANSWER


async def test_every_batch_size_up_to_the_largest(machine: Machine, small: Small, engine: Path) -> None:
    async with worker_of(machine) as worker:
        loaded = await worker.load("m", engine)
        assert loaded.max_batch_size == PROFILE[2]
        alone = np.concatenate([await run_one(worker, "m", small.name, image[None]) for image in small.images])
        for size in [*range(1, PROFILE[2] + 1), *range(PROFILE[2], 0, -1)]:
            found = await run_one(worker, "m", small.name, small.images[-size:])
            assert worst_row(found, alone, range(SAMPLES - size, SAMPLES)) < OWN_ANSWER, size
        if machine.gpu:
            with pytest.raises(InvalidArgumentError):
                await run_one(worker, "m", small.name, small.images[: PROFILE[2] + 1])
            again = await run_one(worker, "m", small.name, small.images[:3])
            assert worst_row(again, alone, range(3)) < OWN_ANSWER


async def test_several_profiles_answer_alike(gpu: Machine, workshop: Workshop, small: Small, notes: Notes) -> None:
    engine = await workshop.built("profiles", small.model, "FP16", (1, 8, 32), profiles="1:1:1,32:32:32")
    profiles = json.loads((engine / "engine.json").read_text())["profiles"]
    assert len(profiles) == 3
    async with worker_of(gpu) as worker:
        await worker.load("m", engine, instances=2, warmup=[1, 8, 32])
        worst = 0.0
        for size in (1, 8, 2, 32, 1, 5, 32, 3):
            found = await run_one(worker, "m", small.name, small.images[:size])
            worst = max(worst, worst_row(found, small.expected, range(size)))
    notes.add("profiles worst row", round(worst, 5))
    assert worst < OWN_ANSWER


@pytest.mark.parametrize("padding", ["auto", "off"])
async def test_padded_batches_show_no_other_rows(gpu: Machine, small: Small, engine: Path, padding: str) -> None:
    async with worker_of(gpu) as worker:
        await worker.load("m", engine, warmup=[32, 16], options={"padding": padding, "cuda_graphs": "3"})
        for size in (32, 31, 5, 16, 15, 3, 31, 1, 7, 32, 15, 29, 31, 15):
            for _ in range(3):  # measured, decided, and as decided
                found = await run_one(worker, "m", small.name, small.images[:size])
                assert len(found) == size
                assert worst_row(found, small.expected, range(size)) < OWN_ANSWER, size


@pytest.mark.parametrize("precision", ["half", "int8"])
async def test_byte_images_are_normalized_in_the_engine(
    machine: Machine, workshop: Workshop, small: Small, notes: Notes, precision: str
) -> None:
    kind = machine.half if precision == "half" else "INT8"
    source = small.bytes_model if precision == "half" else small.bytes_int8
    engine = await workshop.built(f"bytes-{kind}", source, kind, PROFILE)
    manifest = json.loads((engine / "engine.json").read_text())
    assert manifest["inputs"][0]["dtype"] == "UINT8" and manifest["inputs"][0]["shape"][-1] == 3
    found = await outputs(machine, engine, manifest["inputs"][0]["name"], small.byte_images, 16)
    measured = sqnr_db(found, small.byte_expected)
    notes.add(f"bytes {kind} sqnr_db", round(measured, 1))
    assert measured > LEAST_SQNR_DB[kind]


async def test_a_timing_cache_serves_a_second_build(
    gpu: Machine, workshop: Workshop, small: Small, engine: Path, notes: Notes
) -> None:
    cache = engine / "timing.cache"
    assert cache.stat().st_size == json.loads((engine / "result.json").read_text())["timing_cache_bytes"] > 0
    again = await workshop.built("again", small.model, "FP16", PROFILE, timing_cache=engine)
    seconds = [json.loads((folder / "result.json").read_text())["seconds"] for folder in (engine, again)]
    notes.add("seconds of a build, and of the same with the timing cache", seconds)
    # It knew what it needed: hardly anything was timed and added.
    assert (again / "timing.cache").stat().st_size <= 1.05 * cache.stat().st_size
    found = await outputs(gpu, again, small.name, small.images, 16)
    assert sqnr_db(found, small.expected) > LEAST_SQNR_DB["FP16"]


async def test_layers_have_times(gpu: Machine, int8_engine: Path, notes: Notes) -> None:
    inspected = json.loads((int8_engine / "inspector.json").read_text())
    timed = [layer["milliseconds"] for layer in inspected["layers"] if "milliseconds" in layer]
    notes.add("small INT8: layers, layers with times, milliseconds", [len(inspected["layers"]), len(timed), sum(timed)])
    assert timed and sum(timed) > 0 and inspected["batch"] == PROFILE[1] and inspected["runs"] > 0


async def test_loads_and_unloads_give_device_memory_back(gpu: Machine, engine: Path, notes: Notes) -> None:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    async with worker_of(gpu) as worker:
        used = []
        for _ in range(12):
            loaded = await worker.load("m", engine, instances=2, warmup=[1, 16, 32])
            await worker.unload("m")
            used.append(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) >> 10)
        notes.add("device_memory_bytes of the small engine", getattr(loaded, "device_memory_bytes", None))
        notes.add("device KiB used after each of 12 loads and unloads", used)
        # The driver keeps the first loads' modules and pools.
        assert used[-1] - used[3] <= 4 << 10


async def test_a_load_that_does_not_fit_says_what_it_needs(
    gpu: Machine, workshop: Workshop, large_model: Path, small: Small, engine: Path, notes: Notes
) -> None:
    large = await workshop.built("large", large_model, "FP32", (1, 8, 16))
    async with worker_of(gpu) as worker:
        await worker.load("small", engine)
        with taken(leaving=160 << 20):
            with pytest.raises(EnginehouseError) as refused:
                await worker.load("large", large)
            notes.add("out of memory at load", [refused.value.reason, refused.value.message])
            assert refused.value.reason == "RESOURCE_EXHAUSTED"
            assert "MiB" in refused.value.message and "free" in refused.value.message
            found = await run_one(worker, "small", small.name, small.images[:4])
            assert worst_row(found, small.expected, range(4)) < OWN_ANSWER
        await worker.load("large", large)  # with the memory back, it fits


def test_device_arrays_in_the_workers_process(gpu: Machine, engine: Path, small: Small, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=small.images, expected=small.expected)
    script = Path(__file__).with_name("in_process.py")
    settings = {**variables(), "PYTHONPATH": str(ROOT / "worker")}
    command = [str(gpu.environment.python), str(script), str(engine), str(tmp_path / "data.npz")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    say(done.stdout[-2000:] + done.stderr[-4000:])
    assert done.returncode == 0 and done.stdout.strip().endswith("all right")
