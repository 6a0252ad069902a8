"""TF-TRT and TensorFlow on the GPU, by the worker's stages and workers, against TensorFlow's CPU at FP32.

Needs a GPU and the worker environment tf-trt, found as the services find it, and nothing else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import Floats, distinct_images, variables
from machine import OWN_ANSWER, ROOT, sqnr_db, worst_row

from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments
from enginehouse.workers.link import WorkerProcess
from enginehouse.workers.stage import StageSpec, run_stage

pytestmark = pytest.mark.timeout(550)

PROFILE = {"min": 1, "opt": 8, "max": 16}
SAMPLES = 32
# As for TensorRT's engines (machine.LEAST_SQNR_DB): how many bits are kept, and that ranges are of random weights.
LEAST_SQNR_DB = {"FP32": 60.0, "TF32": 40.0, "FP16": 40.0, "INT8": 10.0}


@pytest.fixture(scope="module")
def environment() -> WorkerEnvironment:
    import pynvml

    try:
        pynvml.nvmlInit()
        if not pynvml.nvmlDeviceGetCount():
            pytest.skip("this machine has no NVIDIA GPU")
        return WorkerEnvironments.discover().for_backend("tf-trt")
    except pynvml.NVMLError as error:
        pytest.skip(f"this machine has no NVIDIA GPU (NVML: {error})")
    except EnginehouseError as error:
        pytest.skip(error.message)


class Bench:
    """A small network, its images, what TensorFlow's CPU makes of them, and engines of it."""

    def __init__(self, environment: WorkerEnvironment, root: Path) -> None:
        self.environment = environment
        self.root = root
        self.frozen = root / "frozen"
        command = [environment.python, Path(__file__).with_name("write_frozen.py"), self.frozen]
        subprocess.run(list(map(str, command)), check=True, env=variables())
        self.images: Floats = distinct_images((SAMPLES, 3, 32, 32), bytes_=False).transpose(0, 2, 3, 1).copy()
        self.data = root / "data"
        self.data.mkdir()
        np.savez(self.data / "data.npz", image=self.images)
        self._expected: dict[str, Floats] = {}

    async def built(self, name: str, backend: str, precision: str, **options: str) -> Path:
        """An engine's folder; made once."""
        folder = self.root / name
        if not (folder / "result.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            inputs = {"model": self.frozen, **({"dataset": self.data} if precision == "INT8" else {})}
            params = {"backend": backend, "precision": precision, "profile": PROFILE, "options": options}
            await run_stage(
                self.environment,
                StageSpec("build", inputs, folder, params),
                log=self.root / f"{name}.log",
                progress=lambda *_: None,
                variables=variables(),
            )
        return folder

    async def expected(self) -> dict[str, Floats]:
        """TensorFlow's own answers at FP32, on the CPU."""
        if not self._expected:
            engine = await self.built("tensorflow", "tensorflow", "FP32")
            async with self.worker("cpu") as worker:
                await worker.load("m", engine, warmup=[])
                self._expected = await outputs(worker, "m", self.images, 16)
        return self._expected

    @asynccontextmanager
    async def worker(self, device: str = "cuda:0") -> AsyncIterator[WorkerProcess]:
        settings = {"PYTHONPATH": str(ROOT / "worker")}
        worker = await WorkerProcess.start(self.environment, device, variables=settings)
        try:
            yield worker
        finally:
            await worker.close()


async def outputs(worker: WorkerProcess, key: str, images: Floats, batch: int) -> dict[str, Floats]:
    """All outputs for all images, in batches of at most `batch`."""
    parts: list[dict[str, Floats]] = []
    for begin in range(0, len(images), batch):
        with await worker.infer(key, {"image": np.ascontiguousarray(images[begin : begin + batch])}) as result:
            parts.append({name: array.copy() for name, array in result.arrays().items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def bench(environment: WorkerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(environment, tmp_path_factory.mktemp("tftrt"))


def described(engine: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((engine / "engine.json").read_text())
    return found


@pytest.mark.parametrize("precision", list(LEAST_SQNR_DB), ids=str.lower)
async def test_outputs_are_close_to_fp32_at_every_batch_size(bench: Bench, precision: str) -> None:
    """Sizes between the engines' run in the next larger engine: their answers are the images' own as well."""
    expected = await bench.expected()
    engine = await bench.built(precision, "tf-trt", precision)
    async with bench.worker() as worker:
        loaded = await worker.load("m", engine, warmup=[1])
        assert loaded.max_batch_size == PROFILE["max"]
        own = (await outputs(worker, "m", bench.images, 16))["logits"]
        measured = {}
        for batch in (1, 3, 8, 11, 16):
            found = await outputs(worker, "m", bench.images, batch)
            measured[batch] = sqnr_db(found["logits"], expected["logits"])
            assert worst_row(found["logits"], own, range(SAMPLES)) < OWN_ANSWER
            assert np.isfinite(found["digammas"]).all()
    print(f"{precision}: {measured} dB; {described(engine)['conversion']}", flush=True)
    assert min(measured.values()) > LEAST_SQNR_DB[precision]


async def test_fp32_is_not_tf32(bench: Bench) -> None:
    """TensorFlow's switch decides what its engines are built with."""
    expected = (await bench.expected())["logits"]
    measured = {}
    for precision in ("FP32", "TF32"):
        engine = await bench.built(precision, "tf-trt", precision)
        async with bench.worker() as worker:
            await worker.load("m", engine, warmup=[])
            measured[precision] = sqnr_db((await outputs(worker, "m", bench.images, 16))["logits"], expected)
    print(measured, flush=True)
    assert measured["FP32"] > measured["TF32"]


def gpu_said() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")


async def test_engines_say_what_they_are(bench: Bench) -> None:
    half, int8 = await bench.built("FP16", "tf-trt", "FP16"), await bench.built("INT8", "tf-trt", "INT8")
    conversion = described(half)["conversion"]
    assert conversion["tensorrt_segments"] >= 1 and conversion["converted_ops"] >= 8
    assert conversion["tensorflow_op_types"]["Digamma"] == 1
    assert conversion["tensorflow_ops"] == sum(conversion["tensorflow_op_types"].values())
    assert [1, 8, 16] in conversion["engines"].values()
    assert {size for sizes in described(int8)["conversion"]["engines"].values() for size in sizes} == {16}
    calibration = described(int8)["calibration"]
    assert (calibration["samples"], calibration["batch"]) == (SAMPLES, 16) and calibration["data"]["digest"]
    device = described(half)["device"]
    assert [device["product"], device["driver_version"], device["compute_capability"]] == gpu_said()


async def test_one_worker_holds_several_engines_and_not_all_memory(bench: Bench) -> None:
    """Every build names its engines alike, and a model may come again after it went."""
    import pynvml

    def used() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)

    expected = (await bench.expected())["logits"]
    engines = {name: await bench.built(name, "tf-trt", name) for name in ("FP32", "FP16", "INT8")}
    before = used()
    async with bench.worker() as worker:
        for name, engine in engines.items():
            await worker.load(name, engine, warmup=[1])
        await worker.load("again", engines["FP16"], warmup=[1])
        await worker.unload("FP16")
        await worker.load("FP16", engines["FP16"], instances=2, warmup=[1, 16])
        for name in (*engines, "again"):
            found = await outputs(worker, name, bench.images, 5)
            assert sqnr_db(found["logits"], expected) > LEAST_SQNR_DB.get(name, LEAST_SQNR_DB["FP16"])
        taken = used() - before
    print(f"a worker with four engines takes {taken >> 20} MiB of the GPU", flush=True)
    assert taken < 8 << 30


async def test_engines_are_refused_where_they_cannot_run(bench: Bench, tmp_path: Path) -> None:
    engine = await bench.built("FP16", "tf-trt", "FP16")
    async with bench.worker("cpu") as worker:
        with pytest.raises(FailedPreconditionError, match="cuda:0"):
            await worker.load("m", engine)
    other = tmp_path / "other"
    shutil.copytree(engine, other)
    for change, named in (
        ({"device": {"kind": "gpu", "product": "NVIDIA T4", "compute_capability": "7.5"}}, "NVIDIA T4"),
        ({"backend_version": "2.15.0+tensorrt8.6.1"}, "2.15.0"),
    ):
        (other / "engine.json").write_text(json.dumps({**described(engine), **change}))
        async with bench.worker() as worker:
            with pytest.raises(FailedPreconditionError, match=named):
                await worker.load("m", other)


async def test_int8_needs_data(bench: Bench) -> None:
    folder = bench.root / "refused"
    folder.mkdir()
    params = {"backend": "tf-trt", "precision": "INT8", "profile": PROFILE, "options": {}}
    with pytest.raises(InvalidArgumentError, match="no data was given"):
        await run_stage(
            bench.environment,
            StageSpec("build", {"model": bench.frozen}, folder, params),
            log=bench.root / "refused.log",
            progress=lambda *_: None,
            variables=variables(),
        )


async def test_tensorflow_runs_on_the_gpu_with_and_without_tf32(bench: Bench) -> None:
    expected = (await bench.expected())["logits"]
    engine = await bench.built("tensorflow", "tensorflow", "FP32")
    measured = {}
    for tf32 in ("false", "true"):
        async with bench.worker() as worker:
            await worker.load("m", engine, warmup=[], options={"tf32": tf32})
            measured[tf32] = sqnr_db((await outputs(worker, "m", bench.images, 16))["logits"], expected)
            with pytest.raises(FailedPreconditionError, match="TF32"):
                await worker.load("n", engine, warmup=[], options={"tf32": "true" if tf32 == "false" else "false"})
    print(f"TensorFlow on the GPU, by TF32: {measured}", flush=True)
    assert measured["false"] > LEAST_SQNR_DB["FP32"] and measured["true"] > LEAST_SQNR_DB["TF32"]
    assert measured["false"] > measured["true"]
