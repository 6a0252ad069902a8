"""Engines by the worker's own stages, and workers that run them, as the services drive them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import ROOT, Machine, say

from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.link import WorkerProcess
from enginehouse.workers.stage import StageSpec, run_stage

SAMPLES = 48
# What made-up images look like to a model that takes bytes.
PREPROCESSING = {"mean": [123.7, 116.3, 103.5], "deviation": [58.4, 57.1, 57.4], "bgr": False}
Floats = npt.NDArray[Any]


def variables() -> dict[str, str]:
    """Of a stage or a worker: this checkout's worker, whatever is installed."""
    return {**os.environ, "ENGINEHOUSE_WORKER_PATH": str(ROOT / "worker")}


def write_model(machine: Machine, *arguments: object) -> None:
    """Run write_models.py in the environment that has onnx."""
    command = [machine.onnx.python, Path(__file__).with_name("write_models.py"), *map(str, arguments)]
    subprocess.run(command, check=True, env=variables())


class Workshop:
    """Runs stages into folders of one place; a folder that is finished is not made again."""

    def __init__(self, machine: Machine, root: Path) -> None:
        self.machine = machine
        self.root = root

    async def stage(
        self, output: str, stage: str, inputs: Mapping[str, Path], environment: WorkerEnvironment, **params: Any
    ) -> Path:
        """Run a stage; returns its folder.

        Raises:
            EnginehouseError: what the stage said.
        """
        folder = self.root / output
        if (folder / "result.json").exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        spec = StageSpec(stage, inputs, folder, params)
        await run_stage(
            environment, spec, log=folder.with_suffix(".log"), progress=lambda *_: None, variables=variables()
        )
        return folder

    async def imported(self, name: str, *arguments: object) -> Path:
        """A model after the import stage; `arguments` are write_models.py's, less the folder."""
        source = self.root / name / "source"
        if not (source / "model.onnx").exists():
            kind, *rest = arguments
            order = [*rest, source] if kind == "zoo" else [source, *rest]
            write_model(self.machine, kind, *order)
        return await self.stage(f"{name}/fp32", "import", {"model": source}, self.machine.onnx)

    async def images(self, name: str, model: Path, samples: int = SAMPLES) -> Path:
        """A dataset of the model's shape: bytes, channels last, where the model takes bytes."""
        folder = self.root / name / "images"
        if not (folder / "data.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            spec = json.loads((model / "signature.json").read_text())["inputs"][0]
            shape = (samples, *spec["shape"][1:])
            array = distinct_images(shape, bytes_=spec["dtype"] == "UINT8")
            np.savez(folder / "data.npz", **{spec["name"]: array})
        return folder

    async def quantized(self, name: str, model: Path, images: Path) -> Path:
        """The model with Q/DQ, by the table that calibration on the images gives."""
        onnx = self.machine.onnx
        table = await self.stage(
            f"{name}/table", "calibrate", {"model": model, "dataset": images}, onnx, method="entropy"
        )
        dialect = "tensorrt" if self.machine.gpu else "onnxruntime"
        inputs = {"model": model, "calibration": table}
        return await self.stage(f"{name}/int8", "quantize", inputs, onnx, dialect=dialect)

    async def reference(self, name: str, model: Path, images: Path) -> Floats:
        """ONNX Runtime's FP32 outputs for the images, of a model with one output."""
        inputs = {"model": model, "dataset": images}
        folder = await self.stage(f"{name}/reference", "reference", inputs, self.machine.onnx)
        with np.load(folder / "outputs.npz") as file:
            return file[file.files[0]]

    async def built(
        self,
        output: str,
        model: Path,
        precision: str,
        profile: tuple[int, int, int],
        timing_cache: Path | None = None,
        **options: str,
    ) -> Path:
        """An engine's folder."""
        least, usual, most = profile
        inputs = {"model": model, **({"timing_cache": timing_cache} if timing_cache else {})}
        folder = await self.stage(
            f"engines/{output}",
            "build",
            inputs,
            self.machine.environment,
            backend=self.machine.backend,
            precision=precision,
            profile={"min": least, "opt": usual, "max": most},
            options=options,
        )
        say(f"built {output}: {json.loads((folder / 'result.json').read_text()).get('seconds')} s")
        return folder


@asynccontextmanager
async def worker_of(machine: Machine) -> AsyncIterator[WorkerProcess]:
    """A worker of the backend under test."""
    settings = {"PYTHONPATH": str(ROOT / "worker")}
    worker = await WorkerProcess.start(machine.environment, machine.device, variables=settings)
    try:
        yield worker
    finally:
        await worker.close()


def distinct_images(shape: tuple[int, ...], *, bytes_: bool) -> Floats:
    """Noise around a colour and a gradient of each image's own, so that answers to different images are far apart."""
    random, samples = np.random.default_rng(7), shape[0]
    height, width, channels = shape[1:] if bytes_ else (*shape[2:], shape[1])
    colours = random.standard_normal((samples, 1, 1, channels)) * 1.2
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    slopes = random.standard_normal((2, samples, 1, 1, channels))
    images = colours + slopes[0] * across[None, None, :, None] + slopes[1] * down[None, :, :, None]
    images = images + 0.5 * random.standard_normal((samples, height, width, channels))
    if bytes_:
        return np.clip(np.rint(images * 50 + 118), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)


async def run_one(worker: WorkerProcess, key: str, name: str, rows: Floats) -> Floats:
    """The only output for these rows."""
    with await worker.infer(key, {name: np.ascontiguousarray(rows)}) as result:
        (found,) = result.arrays().values()
        return found


def array_of(folder: Path) -> tuple[str, Floats]:
    """The only array of a dataset's folder."""
    with np.load(folder / "data.npz") as file:
        (name,) = file.files
        return name, file[name]
