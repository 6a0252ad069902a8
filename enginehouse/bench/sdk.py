"""The benchmark's seams on the SDK and on worker processes. Everything that knows their interfaces is here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from enginehouse.bench.environment import bench_software
from enginehouse.bench.modes import Mode
from enginehouse.bench.rows import Accuracy
from enginehouse.bench.seams import Engine, JobStage, Measurement, Progress, Seams, Tensor
from enginehouse.bench.suite import CalibrationPlan, ModelSpec, Suite
from enginehouse.client.values import BatchProfile, Calibration, JobView, Synthetic, Target, VerificationSpec
from enginehouse.client.values import Engine as PublishedEngine
from enginehouse.errors import EnginehouseError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments
from enginehouse.workers.link import WorkerProcess

if TYPE_CHECKING:
    from enginehouse.client import AsyncClient

# Building a TF-TRT engine for every batch size takes minutes.
READY_SECONDS = 900.0
# How long Ctrl-C waits for the optimizer to hear of it.
CANCEL_SECONDS = 5.0
# A large batch on a CPU with several requests in flight.
CALL_SECONDS = 300.0
# The GPU to build on, as the node label nvidia.com/gpu.product has it.
GPU_PRODUCT_VARIABLE = "ENGINEHOUSE_GPU_PRODUCT"


def connect(client: AsyncClient, suite: Suite, progress: Progress) -> Seams:
    """The seams of a run on this machine, through the client's services.

    Raises:
        InvalidArgumentError: the variables that name worker environments are not valid.
    """
    return Seams(
        engines=SdkEngines(client),
        workers=ProcessWorkers(WorkerEnvironments.discover()) if set(suite.scopes) - {"served"} else None,
        serving=SdkServing(client) if "served" in suite.scopes else None,
        telemetry=SdkTelemetry(client),
        progress=progress,
    )


class SdkEngines:
    """Engines from the optimizer."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._published: dict[str, PublishedEngine] = {}
        self._stages: dict[str, tuple[JobStage, ...]] = {}

    async def check(self, model: ModelSpec) -> None:
        await self._model(model)

    async def reachable(self) -> bool:
        return (await self._client.ready())["optimizer"]

    def stages(self, engine: Engine) -> Sequence[JobStage]:
        return self._stages.get(engine.name, ())

    async def engine(self, model: ModelSpec, mode: Mode, suite: Suite) -> Engine:
        # In a cluster with several types of GPU: the one that this process measures on.
        product = os.environ.get(GPU_PRODUCT_VARIABLE, "") if mode.device == "gpu" else ""
        target = Target(mode.backend, mode.engine_precision, profile_for(suite, mode), mode.build_options, product)
        job = await self._client.optimize(
            await self._model(model),
            targets=[target],
            calibration=calibration_for(suite.calibration) if mode.needs_calibration else None,
            verification=verification_for(suite.calibration),
        )
        try:
            (published,) = await job.result()
        except asyncio.CancelledError:
            # Nobody waits for it any more. Stages that are done stay, so a resumed run begins where this one was.
            with contextlib.suppress(EnginehouseError, asyncio.TimeoutError):
                await asyncio.wait_for(job.cancel(), CANCEL_SECONDS)
            raise
        self._published[published.name] = published
        self._stages[published.name] = ran(await job.metadata())
        return to_engine(published)

    async def download(self, engine: Engine, directory: Path) -> Path:
        published = self._published[engine.name]
        return await self._client.engines.download(published, directory / published.id)

    async def _model(self, model: ModelSpec) -> str:
        if model.zoo is not None:
            if model.name == model.zoo:
                return (await self._client.models.ensure_zoo(model.zoo, seed=model.seed)).name
            return (await self._client.models.create_zoo(model.name, model.zoo, model.seed)).name
        if model.file is not None:
            return (await self._client.models.upload(model.file, model.name)).name
        return (await self._client.models.get(model.registered or model.name)).name


def ran(job: JobView) -> tuple[JobStage, ...]:
    """The stages that a job ran itself; those that it reused took no time of the device."""
    return tuple(
        JobStage(stage.name, stage.start_time.timestamp(), stage.end_time.timestamp())
        for stage in job.stages
        if stage.state == "succeeded" and stage.start_time is not None and stage.end_time is not None
    )


def profile_for(suite: Suite, mode: Mode) -> BatchProfile:
    """One engine for all of a mode's batch sizes, tuned for the largest."""
    largest = max(suite.batches_of(mode))
    return BatchProfile(1, largest, largest)


def calibration_for(plan: CalibrationPlan) -> Calibration:
    """The suite's calibration as the SDK's."""
    return Calibration(
        method=plan.method,
        dataset=plan.dataset,
        synthetic=None if plan.dataset else Synthetic(plan.distribution, plan.samples, plan.seed),
        percentile=plan.percentile or 0.0,
        max_samples=plan.max_samples or 0,
        batch_size=plan.batch_size or 0,
    )


def verification_for(plan: CalibrationPlan) -> VerificationSpec:
    """Verify on the calibration's dataset, or on synthetic inputs of another seed.

    On synthetic inputs nothing above noise (0 dB) is refused: random weights lose more by rounding than trained ones,
    which says nothing of speed, and the rows carry what was measured.
    """
    if plan.dataset:
        return VerificationSpec(dataset=plan.dataset, max_samples=plan.max_samples or 0)
    synthetic = Synthetic(plan.distribution, min(plan.samples, 32), plan.seed + 1)
    return VerificationSpec(synthetic=synthetic, minimum_sqnr_db=0.0)


def to_engine(published: PublishedEngine) -> Engine:
    """A published engine as the benchmark sees it."""
    verification = published.verification
    return Engine(
        name=published.name,
        key=published.key,
        backend=published.backend,
        backend_version=published.backend_version,
        precision=published.precision,
        device_kind=published.device.kind,
        device_product=published.device.product,
        max_batch_size=published.max_batch_size,
        inputs=tuple(Tensor(spec.name, spec.dtype, spec.shape) for spec in published.inputs),
        calibration_digest=published.calibration_digest or None,
        accuracy=None if verification is None else Accuracy(**dataclasses.asdict(verification)),
    )


class ProcessWorkers:
    """Worker processes in the environments installed on this machine."""

    def __init__(self, environments: WorkerEnvironments) -> None:
        self._environments = environments

    def environment(self, mode: Mode) -> str:
        if mode.environment is not None:
            return self._environments.environment(mode.environment).name
        return self._environments.for_backend(mode.backend).name

    async def start(self, environment: str, device: str) -> ProcessWorker:
        found = self._environments.environment(environment)
        log: list[str] = []  # kept from our standard error; an error that ends the worker quotes its end
        # CUDA's indices as NVML's, so that telemetry's GPU is the worker's.
        variables = {} if device == "cpu" else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        process = await WorkerProcess.start(found, device, log=log.append, variables=variables)
        versions = {**bench_software(), **await _python(found), **process.backends}
        return ProcessWorker(process, versions)


class ProcessWorker:
    """A worker process."""

    def __init__(self, process: WorkerProcess, software: Mapping[str, str]) -> None:
        self.process, self.software = process, software

    @property
    def pid(self) -> int:
        return self.process.pid

    async def load(self, key: str, directory: Path, *, warmup: Sequence[int], options: Mapping[str, Any]) -> None:
        await self.process.load(key, directory, instances=1, warmup=warmup, options=options)

    async def measure(self, key: str, *, batch: int, seconds: float, seed: int, scope: str) -> Measurement:
        measured = await self.process.measure(key, batch=batch, seconds=seconds, seed=seed, scope=scope)
        return Measurement(measured.latencies_ns, measured.wall_ns, measured.cpu_ns, measured.inferences)

    async def unload(self, key: str) -> None:
        await self.process.unload(key)

    async def close(self) -> None:
        await self.process.close()


async def _python(environment: WorkerEnvironment) -> dict[str, str]:
    """The version of a worker environment's Python and NumPy; empty when it does not say."""
    code = "import platform, numpy; print(platform.python_version(), numpy.__version__)"
    process = await asyncio.create_subprocess_exec(
        str(environment.python), "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    words = out.decode().split()
    return {"python": words[0], "numpy": words[1]} if len(words) == 2 else {}


class SdkServing:
    """The inference service."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def publish(self, name: str, engine: Engine, *, instances: int, options: Mapping[str, Any]) -> None:
        await self._client.load(
            name, engine.name, instances=instances, options=dict(options), wait=True, timeout=READY_SECONDS
        )

    async def withdraw(self, name: str) -> None:
        await self._client.unload(name)

    async def infer(self, name: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        await self._client.infer(name, inputs, timeout=CALL_SECONDS)

    async def software(self) -> Mapping[str, str]:
        return bench_software()

    async def reachable(self) -> bool:
        return (await self._client.ready())["inference"]


class SdkTelemetry:
    """The telemetry service."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def samples(self, period_seconds: float) -> AsyncIterator[Mapping[str, Any]]:
        async for sample in self._client.telemetry.stream(period=period_seconds):
            yield plain(dataclasses.asdict(sample))


def plain(value: Any) -> Any:
    """A sample's value as JSON: times as ISO 8601; what is None, empty text or an empty list is left out of
    mappings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None and item != "" and item != ()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value
